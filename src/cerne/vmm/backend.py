"""Watches the backend of a vhost-user device: a thread waits for its end, and for the next one.

No request of the guest passes through this module, and a backend that does not answer blocks
neither the loop nor the control socket.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Protocol

from cerne.devices.vhost_user.device import VhostUserDevice
from cerne.devices.vhost_user.messages import BackendError
from cerne.vmm.config import BACKEND_SOCKET, BackendConfig
from cerne.vmm.reach import connect

FIRST_PATIENCE = 30.0
"""Seconds within which a backend has to start."""

_FIRST_DELAY, _LONGEST_DELAY = 0.05, 2.0


class MakeDevice(Protocol):
    """Makes a device on a connected socket."""

    def __call__(self, link: socket.socket) -> VhostUserDevice:
        """Make it; raises BackendError if the backend is not usable."""


class Backend:
    """One device and its backend. Events of the backend are written to standard error."""

    def __init__(self, what: str, config: BackendConfig, make: MakeDevice) -> None:
        """Connect to the backend; `what` names it in messages.

        Raises:
            BackendError: it is not usable.
        """
        self._what = what
        self._address = config.address
        self._leash = config.leash
        try:
            self.device = make(socket.socket(fileno=config.link))
        except BackendError as error:
            raise BackendError(f"{what}: {error.message}") from error
        self.device.on_loss = lambda error: self._say(f"is lost: {error.message}")
        self._said = ""
        self._ending = threading.Event()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._keep, name=what, daemon=True)

    def start(self) -> None:
        """Watch the backend; the walls are up by then, and confine a thread that is made later."""
        self._thread.start()

    def finish(self) -> None:
        """End the backend in order, and wait for its end; no vCPU may be running."""
        self._ending.set()
        os.eventfd_write(self._bell, 1)
        self._thread.join(_LONGEST_DELAY)
        with self.device.lock:
            self.device.reset()
        with _told_to_end(self._leash):
            self.device.close()

    def _keep(self) -> None:
        while not self._ending.is_set():
            if self.device.connected:
                self._wait()
                self.device.check()
            elif not self._find_another():
                return

    def _wait(self) -> None:
        """Wait until data comes on the link, or it is closed, or this object ends."""
        poll = select.poll()
        poll.register(self.device.link.fileno(), select.POLLIN | select.POLLRDHUP)
        poll.register(self._bell, select.POLLIN)
        poll.poll()

    def _find_another(self) -> bool:
        """Wait for another backend; return False if there is none, or at the end."""
        if self._address is None:
            return False
        delay = _FIRST_DELAY
        while not self._ending.wait(delay):
            delay = min(2 * delay, _LONGEST_DELAY)
            try:
                self.device.reconnect(connected(self._address))
            except BackendError as error:
                self._say(f"does not come back: {error.message}")
                continue
            except OSError:
                # No backend listens yet.
                continue
            self._say("has come back")
            return True
        return False

    def _say(self, words: str) -> None:
        if words != self._said:
            self._said = words
            print(f"{self._what} {words}", file=sys.stderr, flush=True)


def connected(address: int) -> socket.socket:
    """Connect to the backend's socket in its directory (see `BackendConfig.address`)."""
    link = connect(address, BACKEND_SOCKET)
    link.settimeout(_LONGEST_DELAY)
    return link


@contextlib.contextmanager
def _told_to_end(leash: int | None) -> Iterator[None]:
    """Tell the backend's supervisor that the machine ends in order, and wait for its end."""
    if leash is None:
        yield
        return
    with socket.socket(fileno=leash) as end, contextlib.suppress(OSError):
        end.settimeout(FIRST_PATIENCE)
        end.send(b"end")
        yield
        end.recv(1)
