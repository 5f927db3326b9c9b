"""A program that opens a file to write it, and gets it only to read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cerne.vmm.jail import system

_PROGRAM = """
import os, sys, threading
from cerne.vmm.jail import system
from cerne.vmm.jail.bpf import opening
from cerne.vmm.jail.read_only import answer
shared, own = sys.argv[1:]
given = os.open(shared, os.O_RDONLY)
system.prctl(system.Prctl.SET_NO_NEW_PRIVS, 1)
asked, told = os.pipe()
def serve():
    answer(int(os.read(asked, 8)), given)
thread = threading.Thread(target=serve, daemon=True)
thread.start()
listener = system.listen_to_filter(opening())
os.write(told, str(listener).encode())
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
first, second = (libc.open(path.encode(), os.O_RDWR) for path in (shared, own))
print(os.readlink(f"/proc/self/fd/{first}") == shared, os.read(first, 4))
try:
    os.write(first, b"x")
except OSError as error:
    print(os.strerror(error.errno))
print(os.write(second, b"mine"))
third = os.open(own, os.O_RDWR | os.O_CLOEXEC)
print(os.read(third, 4))
"""


def test_the_first_open_gets_the_file_only_to_read_and_others_go_on(tmp_path: Path) -> None:
    shared, own = tmp_path / "shared", tmp_path / "own"
    shared.write_bytes(b"memory")
    own.touch()
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, shared, own],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.splitlines() == [
        "True b'memo'",
        "Bad file descriptor",
        "4",
        "b'mine'",
    ], done.stderr
    assert shared.read_bytes() == b"memory"


def test_an_older_kernel_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    older = os.uname_result(("Linux", "host", "5.8.0-rc1", "", "x86_64"))
    monkeypatch.setattr(os, "uname", lambda: older)
    with pytest.raises(OSError, match="not implemented"):
        system.listen_to_filter(b"")
