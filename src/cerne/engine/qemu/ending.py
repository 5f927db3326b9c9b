"""How a QEMU process ended, from what it leaves behind.

Its pid file is gone where it ended by itself, and stays after a kill or a crash. Where QEMU was
built with the log backend for traces, its log has ``qemu_system_shutdown_request reason=N``, N
being a ShutdownCause (``qapi/run-state.json``), for every end but a reset by the guest.
"""

from __future__ import annotations

import re
from pathlib import Path

from cerne.engine.base import Ending
from cerne.engine.qemu.command_line import PID_FILE

_CAUSE = re.compile(rb"qemu_system_shutdown_request reason=(\d+)")
_TRACE = re.compile(rb"(qemu_system_shutdown_request|runstate_set) ")
_SIGNAL = re.compile(rb"terminating on signal (\d+)")
_PANIC = re.compile(rb"Kernel panic - not syncing: ([^\r\n]*)")
_TAIL = 256 * 1024

_GUEST_PANIC = 8
_CAUSES = {
    1: Ending(orderly=False, reason="the host failed it (see the engine's log)"),
    2: Ending(orderly=True, reason="it was told to quit"),
    3: Ending(orderly=True, reason="it was told to reset"),
    4: Ending(orderly=True, reason="its process was asked to end by a signal"),
    5: Ending(orderly=True, reason="it was closed on the host"),
    6: Ending(orderly=True, reason="the guest shut down"),
    _GUEST_PANIC: Ending(orderly=False, reason="the guest's kernel panicked"),
}


def read_ending(logs: Path) -> Ending:
    """How the process whose logs these are ended."""
    panic = _PANIC.search(_tail(logs / "console.log"))
    log = _tail(logs / "engine.log")
    causes = _CAUSE.findall(log)
    cause = int(causes[-1]) if causes else None
    # A panicked kernel resets, which ends the machine just as a reboot does.
    if panic is not None and cause in (None, _GUEST_PANIC):
        words = panic[1].decode(errors="replace").strip()
        return Ending(orderly=False, reason=f"the guest's kernel panicked: {words}")
    if (logs / PID_FILE).exists():
        return _broken_off(log)
    if cause in _CAUSES:
        return _CAUSES[cause]
    if _SIGNAL.search(log):
        return _CAUSES[4]
    if _TRACE.search(log):
        return Ending(orderly=True, reason="the guest rebooted")
    return Ending(orderly=True, reason="the guest shut down or rebooted")


def _broken_off(log: bytes) -> Ending:
    lines = [line for line in log.splitlines() if line.strip() and not _TRACE.match(line)]
    if not lines:
        return Ending(orderly=False, reason="its process was killed")
    said = lines[-1].decode(errors="replace").strip()
    return Ending(orderly=False, reason=f"its process crashed or was killed; it last said: {said}")


def _tail(log: Path) -> bytes:
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL))
            return file.read()
    except FileNotFoundError:
        return b""
