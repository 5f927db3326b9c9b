"""Fixtures and skips that every part of the suite shares."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from tests import waiting
from tests.cells import end_cells
from tests.taps import Namespace
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from cerne.host.probe import measure_guest_speed
from cerne.host.programs import find_program, install_command

# No test asserts times: what another process takes of this host is no failure.
settings.register_profile("cerne", deadline=None)
settings.load_profile("cerne")

_LIMIT = pytest.StashKey[object]()


@pytest.fixture(autouse=True, scope="session")
def _signals() -> None:
    """Processes that tests start end by signals, though the tests run under nohup, say."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _bytecode() -> Iterator[None]:
    """Commands that tests run keep what they have compiled; without it each takes a third more."""
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        yield


@pytest.fixture(autouse=True, scope="session")
def _boots() -> Iterator[None]:
    """Machines boot in tests, and leave no background boots behind, but where templates are it."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("CERNE_TEMPLATES", "never")
        yield


_numbers = itertools.count()


@pytest.fixture(autouse=True, scope="session")
def _own_ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Machines of tests are not counted by the host's other homes, nor the other way round."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("CERNE_LEDGER", str(tmp_path_factory.getbasetemp() / "ledger"))
        yield


@pytest.fixture(autouse=True)
def _ledger_of_test(
    _own_ledger: None, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Machines of a test are not counted with those that other tests left running."""
    directory = tmp_path_factory.getbasetemp() / f"ledger-{next(_numbers)}"
    monkeypatch.setenv("CERNE_LEDGER", str(directory))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that no worker is left with it."""
    items.sort(key=lambda item: (_group(item.nodeid) != "native", "e2e" not in item.nodeid))


class _Groups(LoadScopeScheduling):  # type: ignore[misc]
    """Shares the tests out to parallel workers: a file is one's, and so is the engine `native`.

    Its machines have one worker for all files, as each keeps a processor busy where the host
    emulates guests' kernels. The order of the groups stays as it is. (``--dist loadgroup`` groups
    nothing since pytest 9.2.)
    """

    def __init__(self, config: pytest.Config, log: Producer | None = None) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> _Groups:
    """The scheduler of all parallel runs."""
    return _Groups(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: object) -> None:
    """Remember a test's time limit, for its second try."""
    item.stash[_LIMIT] = settings


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Set the time limit of a second try: pytest-timeout sets one for the first alone."""
    if getattr(item, "execution_count", 1) > 1 and _LIMIT in item.stash:
        item.config.hook.pytest_timeout_set_timer(item=item, settings=item.stash[_LIMIT])


def _group(nodeid: str) -> str:
    path, _, name = nodeid.partition("::")
    return "native" if "[native" in name and "tests/e2e/" in path else path


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose path is short enough for Unix sockets below it."""
    directory = Path(tempfile.mkdtemp(prefix="cerne-", dir="/tmp"))
    yield directory
    end_cells(directory / "run")
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def home(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CERNE_HOME of its own."""
    monkeypatch.setenv("CERNE_HOME", str(short_path))
    return short_path


@pytest.fixture(scope="session")
def kvm_device() -> Path:
    """/dev/kvm, or a skip that says why it cannot be used."""
    device = Path("/dev/kvm")
    if not device.exists():
        pytest.skip("this host has no /dev/kvm")
    if not os.access(device, os.R_OK | os.W_OK):
        pytest.skip("/dev/kvm is not open to this user")
    return device


@pytest.fixture(scope="session")
def qemu() -> Path:
    """QEMU's path, or a skip that names the command that installs it."""
    path = find_program("qemu-system-x86_64")
    if path is None:
        pytest.skip(f"QEMU is not installed: {install_command('qemu-system-x86_64')}")
    return path


@pytest.fixture(scope="session")
def small_kernel() -> Callable[[Path, bytes], Path]:
    """Writes an ELF file that is nothing but 64-bit code, entered at 1 MiB as Linux is."""

    def write(path: Path, code: bytes) -> Path:
        start = 1 << 20
        ident = b"\x7fELF\x02\x01\x01" + bytes(9)
        head = ident + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, start, 64, 0, 0, 64, 56, 1, 0, 0, 0)
        segment = struct.pack("<IIQQQQQQ", 1, 7, 120, 0, start, len(code), len(code), 4096)
        path.write_bytes(head + segment + code)
        return path

    return write


@pytest.fixture
def root() -> None:
    """Skips where the tests do not run as root."""
    if os.geteuid() != 0:
        pytest.skip("needs root")


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Waits until a condition is true."""
    return waiting.eventually


@pytest.fixture(scope="session")
def emulated(kvm_device: Path) -> bool:
    """Whether this host's kernel emulates guests' kernel code, as the engine is told."""
    return not measure_guest_speed(kvm_device).ring0_native


@pytest.fixture
def namespace(root: None) -> Iterator[Namespace]:
    """A network namespace with a tap, or a skip that says what is missing."""
    if not Path("/dev/net/tun").exists():
        pytest.skip("this host has no /dev/net/tun")
    if find_program("ip") is None:
        pytest.skip(f"ip is not installed: {install_command('ip')}")
    namespace = Namespace()
    yield namespace
    namespace.remove()
