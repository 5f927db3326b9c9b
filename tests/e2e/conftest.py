"""End to end: the command line, as a user has it, against real guests."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cerne.images.kernel import current_kernel
from cerne.manager import Home

_CERNE = Path(sys.executable).with_name("cerne")

KILL_INIT = (
    "code=$(grep r-xp /proc/1/maps | head -n1 | cut -d' ' -f1);"
    "first=$((0x${code%-*} / 4096)); end=$((0x${code#*-} / 4096));"
    "dd if=/dev/zero of=/proc/1/mem bs=4096 seek=$first count=$((end - first)) conv=notrunc;"
    "kill -CHLD 1; sleep 100"
)
"""Wipes the first process's code and wakes it: it dies, and its kernel panics."""


class Cerne:
    """The command line, in a home of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environment = {**os.environ, "CERNE_HOME": str(home), "TERM": "xterm"}
        self.program = str(_CERNE)
        self.prefix: tuple[str, ...] = ()
        """What runs it elsewhere: in a network namespace."""

    def __call__(
        self, *words: str, stdin: bytes = b"", timeout: float = 240
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end, whatever that is."""
        return subprocess.run(
            [*self.prefix, self.program, *words],
            input=stdin,
            capture_output=True,
            timeout=timeout,
            env=self.environment,
            check=False,
        )

    def ok(self, *words: str, stdin: bytes = b"", timeout: float = 240) -> str:
        """What a command that must succeed prints."""
        done = self(*words, stdin=stdin, timeout=timeout)
        assert done.returncode == 0, f"cerne {' '.join(words)}: {done.stderr.decode()}"
        return done.stdout.decode()

    def refused(self, *words: str, status: int | None = None) -> str:
        """What a command that must be refused says, which is never a traceback."""
        done = self(*words)
        said = done.stderr.decode()
        assert done.returncode != 0, f"cerne {' '.join(words)} was not refused"
        assert status is None or done.returncode == status, said
        assert "Traceback" not in said
        assert said.startswith("cerne: "), said
        return said

    def begin(self, *words: str) -> subprocess.Popen[bytes]:
        """Start a command and go on, in a process group of its own."""
        return subprocess.Popen(
            [self.program, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment,
            start_new_session=True,
        )

    def machine(self, name: str) -> dict[str, object]:
        """What inspect says of a machine."""
        found: dict[str, object] = json.loads(self.ok("inspect", "--json", name))
        return found

    def names(self) -> list[str]:
        """The names of all machines."""
        return self.ok("ls", "--quiet").split()

    def leftovers(self) -> list[str]:
        """Directories of machines, and processes that name this home."""
        found = [str(path) for path in (self.home / "machines").iterdir()]
        found += [str(path) for path in (self.home / "run" / "m").iterdir()]
        return found + [f"process {pid}" for pid in self.processes()]

    def processes(self) -> list[int]:
        """Processes of virtual machines of this home."""
        marker = str(self.home / "run").encode()
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            try:
                command = (entry / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if marker in command and not command.startswith(sys.executable.encode()):
                found.append(int(entry.name))
        return found


def resident(cerne: Cerne, name: str) -> int:
    """Bytes of this host's memory that a machine's process holds."""
    (found,) = json.loads(cerne.ok("stats", "--json", name))
    return int(found["resident_bytes"])


def available(cerne: Cerne, name: str) -> int:
    """Bytes of memory that a guest could still use (proc(5), MemAvailable)."""
    lines = cerne.ok("exec", name, "cat", "/proc/meminfo").splitlines()
    (line,) = [line for line in lines if line.startswith("MemAvailable:")]
    return int(line.split()[1]) << 10


@pytest.fixture(scope="session")
def _session_home() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="cerne-", dir="/tmp"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def _built(_session_home: Path, qemu: Path) -> Cerne:
    cerne = Cerne(_session_home)
    cerne.ok("image", "build", "tiny", timeout=280)
    return cerne


@pytest.fixture
def cerne(_built: Cerne) -> Iterator[Cerne]:
    """The command line, the tiny image built; no machine outlives a test."""
    yield _built
    for name in _built.names():
        _built("rm", "--force", name)
    assert _built.leftovers() == []


@pytest.fixture(scope="module")
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
    return found


@pytest.fixture
def interrupt() -> Callable[[subprocess.Popen[bytes]], int]:
    """Presses Ctrl-C in a command's terminal and waits for its end; its exit status."""

    def press(process: subprocess.Popen[bytes]) -> int:
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=60)
        return process.returncode

    return press


@pytest.fixture(scope="session")
def own_kernel() -> None:
    """Skips where only the distribution's kernel is there: it is large, and has no 9p."""
    if current_kernel(Home.of_this_user().cache) is None:
        pytest.skip("the guest kernel is not built: cerne kernel build")
