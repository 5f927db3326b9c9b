"""The built-in images: what is in tiny, and where Debian comes from."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.waiting import PATIENCE

from cerne.host.programs import find_program
from cerne.images import debian
from cerne.images.initramfs import write_loader, write_tiny
from cerne.images.progress import Progress, silent


@pytest.mark.skipif(find_program("busybox") is None, reason="busybox is not installed")
def test_tiny_is_the_same_each_time_and_starts_the_agent(tmp_path: Path) -> None:
    agent = tmp_path / "agent"
    agent.write_bytes(b"the agent")
    for name in ("one", "two"):
        write_tiny(tmp_path / name, agent, ())
    archive = (tmp_path / "one").read_bytes()
    assert archive == (tmp_path / "two").read_bytes()
    assert archive.startswith(b"070701")
    assert b"the agent" in archive
    assert b"init\0" in archive


def test_modules_of_a_stock_kernel_are_loaded_in_their_order(tmp_path: Path) -> None:
    if find_program("busybox") is None:
        pytest.skip("busybox is not installed")
    agent = tmp_path / "agent"
    agent.write_bytes(b"")
    modules = [tmp_path / "virtio.ko", tmp_path / "virtio_ring.ko"]
    for module in modules:
        module.write_bytes(b"module")
    write_tiny(tmp_path / "initrd", agent, modules)
    assert b"for module in virtio virtio_ring; do" in (tmp_path / "initrd").read_bytes()


def test_what_runs_once_proc_is_gone_is_named_by_its_path(tmp_path: Path) -> None:
    if find_program("busybox") is None:
        pytest.skip("busybox is not installed")
    write_loader(tmp_path / "loader", [])
    script = (tmp_path / "loader").read_bytes().split(b"umount /proc /sys\n")[1]
    # Commands that are not on the path are run from /proc/self/exe.
    assert b'exec /usr/bin/busybox switch_root /newroot "$init"\n' in script


def test_programs_are_run_by_their_path_in_a_name_space(monkeypatch: pytest.MonkeyPatch) -> None:
    if find_program("mke2fs") is None:
        pytest.skip("mke2fs is not installed")
    # An ordinary user's PATH does not lead to it.
    monkeypatch.setattr(debian, "as_root", lambda: ["env", "PATH=/nowhere"])
    debian._run_as_root(["mke2fs", "-V"])


def test_a_system_that_is_there_does_not_wait_for_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(suite: str, packages: str, archive: Path, progress: Progress) -> None:
        if packages == "b":
            with ThreadPoolExecutor() as workers:
                there = workers.submit(debian.debian_system, suite, tmp_path, silent, "a")
                assert there.result(PATIENCE).read_text() == "a"
        archive.write_text(packages)

    monkeypatch.setattr(debian, "_mmdebstrap", fetch)
    for packages in ("a", "b"):
        made = debian.debian_system("bookworm", tmp_path, silent, packages)
        assert made.read_text() == packages


def test_a_debian_gets_security_fixes() -> None:
    suite, updates, security = debian._sources("bookworm")
    assert suite.startswith("deb ")
    assert suite.endswith("/debian bookworm main")
    assert updates.endswith("/debian bookworm-updates main")
    assert security.endswith("/debian-security bookworm-security main")
