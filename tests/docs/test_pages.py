"""README.md and docs/, followed: their commands run in order, and print what they are shown to."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.docs.pages import Command, commands, pages, shape

from cerne.images.kernel import current_kernel
from cerne.manager import Home

NOT_RUN = {
    "cerne kernel build": "takes minutes; `make test` has built the kernel",
    "pip install qemu.qmp": "fetches from the package index, and is of the virtual environment",
    "qmp-shell /run/cerne/m/37a6ee2c5d6c/qmp.sock": "is a session at a terminal",
    "cerne snapshot import --name again before.cerne": "the page shows a file that was damaged",
}
"""Commands that no test runs as they stand, and why."""

SLOW = {"debian:12": "builds Debian from a mirror"}
"""What makes a command one of `make test-all`, and why."""

PORTS = ("8088", "8090")
"""Ports of this host that pages publish; free ones take their places."""

SLOW_PAGES = {
    "images": "boots a Debian with systemd, and makes an image of it",
    "machines": "boots what test_attachments.py and test_cpus.py boot too",
    "snapshots": "starts six machines",
    "templates": "boots five machines",
    "network": "boots what test_run.py boots too",
    "networks": "boots what test_networks.py boots too",
}
"""Pages that `make test-all` alone follows, and why."""

VARYING = {
    "cerne run --rm tiny -- uname -a": "names the kernel's build",
    "cerne events web": "has as many events as the engine has",
    "cerne capacity": "has what this host has",
    "cerne balance": "has what this host has",
    "cerne image ls": "lists what can be built, too",
    "cerne image create": "names the digest of what it made",
    "cerne kernel ls": "names the kernel of this host",
    "cerne create --name huge": "is refused with what this host has",
    "cerne stats": "has what the engine measures",
    "cerne top --once web": "has what the engine measures",
    "cerne stats web": "has what the engine measures",
    "cerne run --rm --mount": "lists this directory",
}
"""Beginnings of commands whose lines are not compared, and why."""


@pytest.fixture
def home() -> Iterator[Path]:
    """A home of its own, whose path is short enough for sockets."""
    directory = Path(tempfile.mkdtemp(prefix="cerne-docs-", dir="/tmp"))
    try:
        yield directory
    finally:
        _shell("cerne ls --quiet | xargs -r cerne rm --force", directory)
        shutil.rmtree(directory, ignore_errors=True)


def _shell(words: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in bash, ``cerne`` being ours, in a directory of the page's own."""
    work = home / "work"
    work.mkdir(exist_ok=True)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "CERNE_HOME": str(home), "PATH": path}
    return subprocess.run(
        ["bash", "-c", words],
        cwd=work,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
    return found


def _differs(command: Command, printed: str) -> bool:
    if any(command.words.startswith(beginning) for beginning in VARYING):
        return False
    return [shape(line) for line in printed.splitlines()] != [*map(shape, command.shown)]


def _follow(page: Path, home: Path, *, slow: bool) -> None:
    free = {port: str(_free_port()) for port in PORTS}
    for command in commands(page):
        if command.words in NOT_RUN or (not slow and _is_slow(command)):
            continue
        words = command.words
        for port, other in free.items():
            words = words.replace(port, other)
        done = _shell(words, home)
        printed = done.stdout + done.stderr
        said = f"{page.name}: {command.words}\nprinted: {printed}\nshown: {command.shown}"
        assert (done.returncode != 0) == command.refused, said
        assert not _differs(command, printed), said


def _is_slow(command: Command) -> bool:
    return any(what in command.words for what in SLOW)


def _pages(*, slow: bool) -> list[Path]:
    return [page for page in pages() if _is_slow_page(page) is slow]


def _is_slow_page(page: Path) -> bool:
    return page.stem in SLOW_PAGES


@pytest.fixture
def templates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets machines start from templates: without, they are made in the background."""
    monkeypatch.delenv("CERNE_TEMPLATES", raising=False)


@pytest.mark.parametrize("page", _pages(slow=False), ids=lambda page: page.stem)
def test_a_page(page: Path, home: Path, qemu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CERNE_TEMPLATES", "never")
    if current_kernel(Home.of_this_user().cache) is None:
        pytest.skip("the guest kernel is not built: cerne kernel build")
    _follow(page, home, slow=False)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "page",
    [page for page in pages() if _is_slow_page(page) or any(map(_is_slow, commands(page)))],
    ids=lambda page: page.stem,
)
def test_a_page_with_what_is_slow(page: Path, home: Path, qemu: Path, templates: None) -> None:
    _follow(page, home, slow=True)


def test_the_tables_name_what_is_there() -> None:
    every = [command.words for page in pages() for command in commands(page)]
    for beginning in [*NOT_RUN, *VARYING]:
        assert any(words.startswith(beginning) for words in every), beginning
    for what in SLOW:
        assert any(what in words for words in every), what
