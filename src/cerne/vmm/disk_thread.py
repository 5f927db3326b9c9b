"""A thread for each disk that the VMM serves itself, so that no disk stops anything else.

A system call for a file may take long, or for ever if its storage hangs. The thread waits for the
doorbells of its disk's queues, does the requests and interrupts the guest; the VMM's loop does the
rest of the work. Before the loop changes a disk, or reads its state, the thread has to rest: it
finishes its present request, and waits. No thread that rests holds a lock, so that the process may
fork.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import NoReturn

from cerne.devices.virtio.block import BlockDevice
from cerne.errors import EngineError
from cerne.vmm.loop import Loop, Ready

Rested = Callable[[EngineError | None], None]
"""Called when disks rest, or with the error that they do not; they may run again after its end."""


class DiskThread:
    """The thread of one disk. It rests until `release`; the owner's loop calls all methods."""

    def __init__(self, name: str, owner: Loop, device: BlockDevice) -> None:
        self.name = name
        self.device = device
        self._owner = owner
        self._loop = Loop()
        device.wait_with(self._loop.after)
        # Guards the next three.
        self._change = threading.Condition()
        self._holds = 1
        self._told: list[Ready] = []
        self._ended = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread, which rests at first."""
        self._thread.start()

    def limit_changed(self) -> None:
        """Let requests that wait for a limit try again."""
        self._loop.ask(self.device.limit_changed)

    def watch(self, descriptor: int, readable: Ready | None) -> None:
        """Wait for a doorbell (see `cerne.vmm.pci_host.Watcher`), while the thread rests."""
        self._loop.watch(descriptor, readable)

    def hold(self, rests: Ready) -> None:
        """Let the thread rest until `release`; the owner's loop calls `rests` when it does."""
        if not self._thread.is_alive():
            self._holds += 1
            rests()
            return
        with self._change:
            self._holds += 1
            self._told.append(rests)
            self._change.notify_all()
        self.device.interrupt()
        self._loop.ask(self._rest)

    def hold_on(self) -> None:
        """Let the thread rest for one more `release`; it rests already, and does not wake up."""
        with self._change:
            self._holds += 1

    def release(self) -> None:
        """Let the thread work again, if each `hold` was released."""
        with self._change:
            self._holds -= 1
            self._change.notify_all()

    def ask_to_end(self) -> None:
        """End the thread after its present request; `wait_ended` waits for that."""
        with self._change:
            self._ended = True
            self._change.notify_all()
        self.device.interrupt()
        self._loop.ask(self._loop.stop)

    def wait_ended(self, patience: float) -> bool:
        """Wait until the thread has ended; return False if it did not in time."""
        if self._thread.is_alive():
            self._thread.join(patience)
        return not self._thread.is_alive()

    def close(self) -> None:
        """Close its own descriptors; the thread has ended, or is not in this process."""
        self._loop.close()

    def _run(self) -> None:
        try:
            self._rest()
            self._loop.run()
        except BaseException as error:  # noqa: BLE001 - a fault here ends the machine, as on the loop
            self._owner.ask(partial(_raise, error))

    def _rest(self) -> None:
        """Wait as long as it is held; on the thread."""
        with self._change:
            while self._holds and not self._ended:
                for rests in self._told:
                    self._owner.ask(partial(self._settled, rests))
                self._told.clear()
                self._change.wait()

    def _settled(self, rests: Ready) -> None:
        """On the owner's loop: if the lock is free, the thread waits and holds no lock."""
        with self._change:
            pass
        rests()


class Rest:
    """Lets some disks rest at once, for one call of a function on the loop's thread."""

    def __init__(self, loop: Loop, threads: Collection[DiskThread]) -> None:
        self._loop = loop
        self._threads = list(threads)
        self._working = set(self._threads)

    def begin(self, patience: float, then: Rested) -> None:
        """Call `then` when all of them rest, or with an error after so many seconds."""
        self._patience = patience
        self._then: Rested | None = then
        for thread in self._threads:
            thread.hold(partial(self._rests, thread))
        if not self._threads:
            self._finish(None)
        elif self._working:
            self._loop.after(patience, self._give_up)

    def _rests(self, thread: DiskThread) -> None:
        self._working.remove(thread)
        if not self._working:
            self._finish(None)

    def _give_up(self) -> None:
        names = ", ".join(sorted(thread.name for thread in self._working))
        self._finish(EngineError(f"{names} has not finished a request within {self._patience:g} s"))

    def _finish(self, error: EngineError | None) -> None:
        if self._then is None:
            return
        then, self._then = self._then, None
        try:
            then(error)
        finally:
            for thread in self._threads:
                thread.release()


def end_all(threads: Collection[DiskThread], patience: float) -> list[DiskThread]:
    """End threads within so many seconds together; return those that did not end."""
    for thread in threads:
        thread.ask_to_end()
    deadline = time.monotonic() + patience
    return [
        thread for thread in threads if not thread.wait_ended(max(0.0, deadline - time.monotonic()))
    ]


def _raise(error: BaseException) -> NoReturn:
    raise error
