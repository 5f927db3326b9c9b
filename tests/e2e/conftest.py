"""End to end: the command line, as a user has it, against real guests, on both engines.

A test that takes `engine` runs once on each, with `Engine.options` on its command lines. Machines
of `qemu` boot, in a second. Those of `native` boot too where KVM runs guests' kernels at the
hardware's speed; where it emulates them they go on from a template that is made once in a session,
and what must boot there all the same is slow (`slow_if_emulated`) or skipped in words
(`not_if_emulated`).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.cells import end_cells
from tests.e2e.forks import Forks, started
from tests.processes import naming
from tests.waiting import PATIENCE, eventually

from cerne.host.probe import cached_guest_speed
from cerne.host.programs import find_program, install_command
from cerne.images.kernel import current_kernel
from cerne.manager import Home
from cerne.manager.warm.template import VARIABLE as TEMPLATES

_CERNE = Path(sys.executable).with_name("cerne")

KILL_INIT = (
    "code=$(grep r-xp /proc/1/maps | head -n1 | cut -d' ' -f1);"
    "first=$((0x${code%-*} / 4096)); end=$((0x${code#*-} / 4096));"
    "dd if=/dev/zero of=/proc/1/mem bs=4096 seek=$first count=$((end - first)) conv=notrunc;"
    "kill -CHLD 1; sleep 100"
)
"""Wipes the first process's code and wakes it: it dies, and its kernel panics."""

only_native = pytest.mark.parametrize("engine", ["native"], indirect=True)
"""For what is `native`'s alone."""


@dataclass(frozen=True, slots=True)
class Engine:
    """The engine of a test's machines."""

    name: str
    emulated: bool
    """Whether it runs guests' kernels two hundred times slower than the hardware would."""

    @property
    def options(self) -> tuple[str, ...]:
        """Of ``run``, ``create`` and others: machines of the one kind that starts quickly."""
        return ("--engine", self.name, "--memory", "128M")


class Cerne:
    """The command line, in a home of its own."""

    def __init__(self, home: Path, forks: Forks | None = None) -> None:
        self.home = home
        self._forks = forks
        self.environment = {**os.environ, "CERNE_HOME": str(home), "TERM": "xterm"}
        self.program = str(_CERNE)
        self.prefix: tuple[str, ...] = ()
        """What runs it elsewhere: in a network namespace."""

    def __call__(
        self, *words: str, stdin: bytes = b"", timeout: float = 240
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end, whatever that is."""
        if self._forks is not None and not self.prefix:
            return self._forks.run([self.program, *words], self.environment, stdin, timeout)
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
        return naming(self.home)


def resident(cerne: Cerne, name: str) -> int:
    """Bytes of this host's memory that a machine's process holds."""
    (found,) = json.loads(cerne.ok("stats", "--json", name))
    return int(found["resident_bytes"])


def available(cerne: Cerne, name: str) -> int:
    """Bytes of memory that a guest could still use (proc(5), MemAvailable)."""
    lines = cerne.ok("exec", name, "cat", "/proc/meminfo").splitlines()
    (line,) = [line for line in lines if line.startswith("MemAvailable:")]
    return int(line.split()[1]) << 10


def emulates_kernels() -> bool:
    """Whether this host's kernel emulates guests' kernels (see `cerne.host.probe`)."""
    speed = cached_guest_speed(Home.of_this_user().guest_speed)
    return speed is not None and not speed.ring0_native


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what is slow on this host."""
    for item in items:
        if item.get_closest_marker("slow_if_emulated") and isinstance(item, pytest.Function):
            of_native = hasattr(item, "callspec") and item.callspec.params.get("engine") == "native"
            if of_native and emulates_kernels():
                item.add_marker(pytest.mark.slow)


@contextlib.contextmanager
def built_home() -> Iterator[Cerne]:
    """The command line, in a home of its own with the image `tiny`, which is gone at the end."""
    directory = Path(tempfile.mkdtemp(prefix="cerne-", dir="/tmp"))
    try:
        with started() as forks:
            cerne = Cerne(directory, forks)
            cerne.ok("image", "build", "tiny", timeout=280)
            yield cerne
    finally:
        end_cells(directory / "run")
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def _qemu(qemu: Path) -> Iterator[Cerne]:
    with built_home() as cerne:
        yield cerne


@pytest.fixture(scope="session")
def _native(kvm_device: Path, request: pytest.FixtureRequest) -> Iterator[Cerne]:
    with built_home() as cerne:
        if not emulates_kernels():
            yield cerne
            return
        request.getfixturevalue("own_kernel")
        del cerne.environment[TEMPLATES]
        options = Engine("native", emulated=True).options
        cerne.ok("image", "warm", *options, "--timeout", "500s", "tiny", timeout=550)
        yield cerne


@pytest.fixture(params=["qemu", "native"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each engine in turn."""
    engine = Engine(request.param, emulated=request.param == "native" and emulates_kernels())
    marker = request.node.get_closest_marker("not_if_emulated")
    if engine.emulated and marker is not None:
        pytest.skip(f"this host emulates guests' kernels: {marker.args[0]}")
    return engine


@pytest.fixture
def cerne(request: pytest.FixtureRequest) -> Iterator[Cerne]:
    """The command line, the tiny image built; no machine outlives a test.

    It is that of the engine that the test runs on, or else that of `qemu`, which has no templates.
    """
    name = request.getfixturevalue("engine").name if "engine" in request.fixturenames else "qemu"
    built: Cerne = request.getfixturevalue(f"_{name}")
    yield built
    # Most tests leave none: a command takes longer than a look.
    if built.leftovers():
        for machine in built.names():
            built("rm", "--force", machine)
        eventually(lambda: built.leftovers() == [])


@pytest.fixture(scope="module")
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
    return found


@pytest.fixture
def templates(cerne: Cerne, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets machines start from templates, on either engine."""
    monkeypatch.delitem(cerne.environment, TEMPLATES, raising=False)


@pytest.fixture
def no_templates(cerne: Cerne, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has every machine boot, on either engine."""
    monkeypatch.setitem(cerne.environment, TEMPLATES, "never")


@pytest.fixture
def interrupt() -> Callable[[subprocess.Popen[bytes]], int]:
    """Presses Ctrl-C in a command's terminal and waits for its end; its exit status."""

    def press(process: subprocess.Popen[bytes]) -> int:
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=PATIENCE)
        return process.returncode

    return press


@pytest.fixture(scope="session")
def own_kernel() -> None:
    """Skips where only the distribution's kernel is there: it is large, and has no 9p."""
    if current_kernel(Home.of_this_user().cache) is None:
        pytest.skip("the guest kernel is not built: cerne kernel build")


@pytest.fixture
def mounting(engine: Engine, request: pytest.FixtureRequest) -> None:
    """Skips where the engine cannot mount directories of this host."""
    if engine.name == "qemu":
        request.getfixturevalue("own_kernel")
    elif find_program("virtiofsd") is None:
        pytest.skip(f"virtiofsd is not installed: {install_command('virtiofsd')}")
