"""Processes of this host, identified by pid and start time, so that a reused pid is no match.

The start time is field 22 of ``/proc/PID/stat`` (proc(5)), in clock ticks since boot; with the boot
ID it identifies a process for ever. Signals go through a pidfd, which never reaches another
process.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@cache
def boot_id() -> str:
    """The kernel's random ID of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def status_of(place: Path) -> dict[str, str]:
    """What a process's directory in /proc says of it (proc(5), status).

    Raises:
        OSError: it has ended.
    """
    lines = (place / "status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """The identity of one process, which no other process has, even after a reboot."""

    pid: int
    start_time: int
    """Clock ticks since boot."""
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """The identity of a running process, or None if there is none (or only a zombie)."""
        start_time = _start_time(pid)
        return None if start_time is None else cls(pid, start_time, boot_id())

    @classmethod
    def from_status(cls, boot: str, status: bytes) -> ProcessIdentity:
        """The identity from a line of ``/proc/PID/stat``, in this boot.

        Raises:
            ValueError, IndexError: it is not such a line.
        """
        pid = int(status.split(b" ", 1)[0])
        return cls(pid, int(status.rpartition(b")")[2].split()[19]), boot)

    def alive(self) -> bool:
        """Whether this process runs."""
        return self.boot_id == boot_id() and _start_time(self.pid) == self.start_time

    def state(self) -> str:
        """The letter of its state in proc(5), such as ``T`` for stopped; empty if it has ended."""
        fields = _stat(self.pid)
        known = self.boot_id == boot_id() and fields and int(fields[19]) == self.start_time
        return fields[0].decode() if known else ""

    def user(self) -> int | None:
        """Its real user id (proc(5), status); None if it has ended."""
        with contextlib.suppress(OSError):
            user = int(status_of(Path(f"/proc/{self.pid}"))["Uid"].split()[0])
            return user if self.alive() else None
        return None

    def stopped(self) -> bool:
        """Whether it is stopped, by SIGSTOP or a debugger, and does nothing until it goes on."""
        return self.state() in ("T", "t")

    def send(self, signal_number: signal.Signals) -> bool:
        """Send a signal; return False if the process has ended."""
        with self.pidfd() as descriptor:
            if descriptor is None:
                return False
            try:
                signal.pidfd_send_signal(descriptor, signal_number)
            except ProcessLookupError:
                return False
            return True

    def wait(self, timeout: float | None = None) -> bool:
        """Wait at most `timeout` seconds for the process to end; return whether it has ended."""
        with self.pidfd() as descriptor:
            if descriptor is None:
                return True
            # select(2) handles only the first 1024 descriptors.
            ended = select.poll()
            ended.register(descriptor, select.POLLIN)
            return bool(ended.poll(None if timeout is None else max(0.0, timeout) * 1000))

    @contextlib.contextmanager
    def pidfd(self) -> Iterator[int | None]:
        """A descriptor that becomes readable at its end (pidfd_open(2)); None after its end."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            yield None
            return
        try:
            # Checked after the pidfd is open: from here on the pid stays with this process.
            yield descriptor if self.alive() else None
        finally:
            os.close(descriptor)


def _start_time(pid: int) -> int | None:
    fields = _stat(pid)
    if not fields:
        return None
    # The first thread may have ended while others still hold the open files of the process.
    ended = fields[0] in (b"Z", b"X") and int(fields[17]) <= 1
    return None if ended else int(fields[19])


def _stat(pid: int) -> list[bytes]:
    """The fields of its stat file after the name, from field 3; none if it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
