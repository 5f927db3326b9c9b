"""A Debian as people use it: packages, a web server, files, a terminal, a disk that lasts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pexpect
import pytest
from tests.e2e.conftest import Cerne, emulates_kernels
from tests.waiting import PATIENCE

_SERVER = (
    "use IO::Socket::INET; my $s = IO::Socket::INET->new(LocalPort => 80, Listen => 5,"
    " ReuseAddr => 1) or die; while (my $c = $s->accept) { <$c>;"
    ' print $c "HTTP/1.0 200 OK\\r\\n\\r\\nheartwood\\n"; close $c }'
)


@pytest.fixture(scope="module", params=["qemu", "native"])
def debian(request: pytest.FixtureRequest, port: int) -> Iterator[Cerne]:
    """The command line, and a machine named ``deb`` that all tests on an engine share."""
    if request.param == "native" and emulates_kernels():
        pytest.skip(
            "this host emulates guests' kernels, and a Debian takes minutes:"
            " test_a_debian_forks_with_its_disk has one"
        )
    built: Cerne = request.getfixturevalue(f"_{request.param}")
    built.ok("image", "build", "debian:12-minimal", timeout=280)
    options = ("--engine", request.param, "--publish", f"{port}:80")
    built.ok("run", "-d", "--name", "deb", *options, "debian:12-minimal")
    yield built
    built("rm", "--force", "deb")


def _fetched(port: int) -> bytes:
    try:
        with urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
            content: bytes = answer.read()
    except (URLError, OSError, HTTPException):
        return b""
    return content


def _exec(cerne: Cerne, *words: str) -> str:
    return cerne.ok("exec", "deb", "--", *words)


def test_it_is_a_debian(debian: Cerne) -> None:
    assert _exec(debian, "cat", "/etc/debian_version").startswith("12.")
    assert "ext4" in _exec(debian, "sh", "-c", "mount | grep ' / '")


@pytest.mark.slow
def test_its_packages_can_be_brought_up_to_date(debian: Cerne) -> None:
    done = debian("exec", "deb", "--", "apt-get", "update", timeout=200)
    if done.returncode != 0:
        pytest.skip("the mirror of Debian cannot be reached from here")
    assert b"Reading package lists" in done.stdout
    assert b"\nErr:" not in done.stdout


def test_a_web_server_in_it_is_reached(
    debian: Cerne, port: int, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    _exec(debian, "sh", "-c", f"perl -e '{_SERVER}' >/dev/null 2>&1 </dev/null &")
    eventually(lambda: _fetched(port) == b"heartwood\n")


def test_large_files_go_in_and_out_unharmed(debian: Cerne, tmp_path: Path) -> None:
    content = os.urandom(1 << 20) * 100
    (tmp_path / "large").write_bytes(content)
    debian.ok("cp", str(tmp_path / "large"), "deb:/root/large")
    digest = hashlib.sha256(content).hexdigest()
    assert _exec(debian, "sha256sum", "/root/large").startswith(digest)
    debian.ok("cp", "deb:/root/large", str(tmp_path / "back"))
    assert hashlib.sha256((tmp_path / "back").read_bytes()).hexdigest() == digest


def test_a_terminal_in_it(debian: Cerne) -> None:
    terminal = pexpect.spawn(
        debian.program, ["shell", "deb"], env=debian.environment, timeout=PATIENCE, encoding="utf-8"
    )
    terminal.expect("[#$] ")
    terminal.sendline("tty; echo $((6 * 7))")
    terminal.expect("/dev/pts/[0-9]+\r\n42\r\n")
    terminal.sendline("exit 9")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 9


def test_its_disk_lasts_and_is_its_own(debian: Cerne) -> None:
    _exec(debian, "sh", "-c", "echo kept > /root/kept; sync")
    debian.ok("stop", "deb")
    debian.ok("start", "deb")
    assert _exec(debian, "cat", "/root/kept") == "kept\n"
    engine = str(debian.machine("deb")["engine"])
    other = debian(
        "run", "--rm", "--engine", engine, "debian:12-minimal", "--", "cat", "/root/kept"
    )
    assert other.returncode != 0


def test_it_powers_itself_off(debian: Cerne) -> None:
    debian("exec", "deb", "poweroff")
    assert debian.ok("wait", "--timeout", "120s", "deb") == "stopped\n"
    assert debian.machine("deb")["reason"] == "the guest shut down"
