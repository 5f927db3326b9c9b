"""What the agent does in a clone: its own C code, in a root directory of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cerne.guest import build
from cerne.host.programs import find_program

_SOURCE = Path(build.__file__).parent / "agent"
_MAIN = r"""
#include <stdio.h>
#include "agent.h"

int main(int argc, char **argv)
{
	char failed[1024];
	bool clone = argc == 4 && identity_renew(argv[1], argv[2], argv[3], failed, sizeof failed);

	printf("%s\n%s", clone ? "clone" : "same", failed);
	return 0;
}
"""
_PARTS = ("identity.c", "clock.c", "line.c")
_FIRST, _OTHER = "1" * 32, "2" * 32

Renew = Callable[[str, str], list[str]]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code as a program of its own, which renews the root directory that it is in."""
    compiler = find_program("musl-gcc") or find_program("gcc")
    if compiler is None or os.geteuid() != 0:
        pytest.skip("needs a C compiler, and root for a root directory of its own")
    directory = tmp_path_factory.mktemp("identity")
    (directory / "main.c").write_text(_MAIN)
    sources = [directory / "main.c", *(_SOURCE / name for name in _PARTS)]
    flags = ("-static", "-std=gnu11", "-Wall", "-Werror", f"-I{_SOURCE}")
    words = [compiler, *flags, *sources, "-o", directory / "renew"]
    subprocess.run([str(word) for word in words], check=True)
    return directory / "renew"


@pytest.fixture
def root(tmp_path: Path, program: Path) -> Path:
    """The root directory of a guest with a machine-id, keys of SSH, leases and hooks."""
    shutil.copy(program, tmp_path / "renew")
    for place in ("etc/ssh", "etc/cerne/clone.d", "var/lib/dhcp", "usr/bin", "bin"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "etc/machine-id").write_text(f"{_FIRST}\n")
    (tmp_path / "etc/ssh/ssh_host_rsa_key").write_text("secret")
    (tmp_path / "etc/ssh/ssh_host_rsa_key.pub").write_text("public")
    (tmp_path / "var/lib/dhcp/dhclient.eth0.leases").write_text("lease")
    if (busybox := find_program("busybox")) is not None:
        shutil.copy(busybox, tmp_path / "bin/busybox")
        (tmp_path / "bin/sh").symlink_to("busybox")
    return tmp_path


@pytest.fixture
def renew(root: Path) -> Renew:
    """Makes the guest a machine's; what is said then."""

    def run(machine: str, machine_id: str) -> list[str]:
        command = ["chroot", str(root), "/renew", "web", machine, machine_id]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        return done.stdout.splitlines()

    return run


def _hook(root: Path, name: str, script: str) -> None:
    if not (root / "bin/busybox").exists():
        pytest.skip("busybox is not installed")
    path = root / "etc/cerne/clone.d" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_a_machine_keeps_what_is_its_own(root: Path, renew: Renew) -> None:
    assert renew("one", _FIRST) == ["same"]
    assert renew("one", _FIRST) == ["same"]
    assert (root / "etc/ssh/ssh_host_rsa_key").read_text() == "secret"
    assert (root / "var/lib/cerne/machine").read_text() == "one\n"


def test_a_clone_keeps_nothing_of_its_source(root: Path, renew: Renew) -> None:
    renew("one", _FIRST)
    assert renew("two", _OTHER) == ["clone"]
    assert (root / "etc/machine-id").read_text() == f"{_OTHER}\n"
    assert list((root / "etc/ssh").iterdir()) == []
    assert list((root / "var/lib/dhcp").iterdir()) == []
    assert renew("two", _OTHER) == ["same"]


def test_a_template_is_another_machine_than_what_is_made_of_it(root: Path, renew: Renew) -> None:
    """Its guest was not told who it is, and has the machine-id of the template's machine."""
    assert renew("two", _OTHER) == ["clone"]
    assert (root / "etc/machine-id").read_text() == f"{_OTHER}\n"


def test_an_image_of_a_machine_has_an_empty_machine_id(root: Path, renew: Renew) -> None:
    renew("image", _FIRST)
    (root / "etc/machine-id").write_text("")
    assert renew("two", _OTHER) == ["clone"]
    assert (root / "etc/machine-id").read_text() == f"{_OTHER}\n"


def test_hooks_run_in_a_clone_alone_and_failures_are_named(root: Path, renew: Renew) -> None:
    _hook(root, "10-note", 'echo "$CERNE_NAME" >> /noted')
    _hook(root, "20-bad", "exit 3")
    (root / "etc/cerne/clone.d/30-no-program").write_text("exit 0")
    assert renew("one", _FIRST) == ["same"]
    assert not (root / "noted").exists()
    assert renew("two", _OTHER) == ["clone", "/etc/cerne/clone.d/20-bad"]
    assert (root / "noted").read_text() == "web\n"
