"""Processes known for good: when one has ended, and when it has not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.waiting import PATIENCE

from cerne.host.process import ProcessIdentity

_FIRST_THREAD_ENDS = """
import ctypes, sys, threading
threading.Thread(target=sys.stdin.read).start()
print("ends", flush=True)
ctypes.CDLL(None).syscall(60, 0)
"""
"""exit(2), which ends one thread: the other one waits for the end of its input."""


def test_a_process_runs_until_its_last_thread_has_ended() -> None:
    command = [sys.executable, "-c", _FIRST_THREAD_ENDS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        identity = ProcessIdentity.of(process.pid)
        assert identity is not None
        process.stdout.readline()
        status = Path(f"/proc/{process.pid}/stat")
        while b") Z " not in status.read_bytes():
            pass
        assert identity.alive()
        assert not identity.wait(0.05)
        process.stdin.close()
        assert identity.wait(PATIENCE)
        assert not identity.alive()
