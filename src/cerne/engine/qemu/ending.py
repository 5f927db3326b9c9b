"""Reads how a QEMU process ended, from its files.

QEMU removes its pid file at its own end, and the file stays after a kill or a crash. If QEMU was
built with the log backend for traces, its log has ``qemu_system_shutdown_request reason=N``, where
N is a ShutdownCause (``qapi/run-state.json``). A reset does not end the process.
"""

from __future__ import annotations

import re
from pathlib import Path

from cerne.engine.base import Ending
from cerne.engine.panic import panicked, tail
from cerne.engine.qemu.command_line import PID_FILE

_CAUSE = re.compile(rb"qemu_system_shutdown_request reason=(\d+)")
_TRACE = re.compile(rb"(qemu_system_shutdown_request|runstate_set) ")
_SIGNAL = re.compile(rb"terminating on signal (\d+)")

# Of processes that an earlier version has started.
_FORMER_PID_FILE = "qemu.pid"
_GUEST_PANIC = 8
_CAUSES = {
    1: Ending(orderly=False, reason="the host failed it (see the engine's log)"),
    2: Ending(orderly=True, reason="it was told to quit"),
    3: Ending(orderly=True, reason="it was told to reset"),
    4: Ending(orderly=True, reason="a signal asked its process to end"),
    5: Ending(orderly=True, reason="it was closed on the host"),
    6: Ending(orderly=True, reason="the guest shut down"),
}


def read_ending(logs: Path) -> Ending:
    """How the process with these logs ended."""
    log = tail(logs / "engine.log")
    causes = _CAUSE.findall(log)
    cause = int(causes[-1]) if causes else None
    if cause == _GUEST_PANIC:
        return panicked(logs / "console.log")
    if any((logs / file).exists() for file in (PID_FILE, _FORMER_PID_FILE)):
        return _broken_off(log)
    if cause in _CAUSES:
        return _CAUSES[cause]
    if _SIGNAL.search(log):
        return _CAUSES[4]
    return Ending(orderly=True, reason="the guest shut down")


def _broken_off(log: bytes) -> Ending:
    lines = [line for line in log.splitlines() if line.strip() and not _TRACE.match(line)]
    if not lines:
        return Ending(orderly=False, reason="its process was killed")
    said = lines[-1].decode(errors="replace").strip()
    return Ending(
        orderly=False, reason=f"its process crashed or was killed; the last line of its log: {said}"
    )
