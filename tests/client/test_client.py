"""The client: an interface of a host, and this host behind it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cerne.client import connect, setup
from cerne.client.host import Host, Machine, Pool, Snapshot
from cerne.client.local import LocalHost
from cerne.errors import DamagedError, NotFoundError
from cerne.images.parts import Parts
from cerne.manager import Home, manager
from cerne.manager.machines import machine
from cerne.manager.warm import pool
from cerne.spec.machine import machine_spec


def members(interface: type) -> list[str]:
    return [name for name in {**vars(interface), **interface.__annotations__} if name[0] != "_"]


@pytest.mark.parametrize(
    ("interface", "local"),
    [
        (Host, LocalHost),
        (Machine, machine.Machine),
        (Snapshot, machine.Snapshot),
        (Pool, pool.Pool),
    ],
)
def test_what_an_interface_has_is_said_where_it_is_done(interface: type, local: type) -> None:
    missing = [name for name in members(interface) if name != "manifest"]
    assert [name for name in missing if not getattr(local, name).__doc__] == []


def test_the_one_factory_gives_this_host(home: Path) -> None:
    host = connect()
    assert isinstance(host, manager.Manager)
    assert (host.machines(), host.operations(), host.snapshot_names()) == ([], [], [])
    assert "tiny" in host.image_names()
    assert {recipe.name for recipe in host.unbuilt_images()} >= {"tiny"}
    with pytest.raises(NotFoundError, match="no machine named web"):
        host.get("web")
    host.close()


def test_what_a_host_can_do_is_found_without_its_store(home: Path) -> None:
    Home.of_this_user().store.write_bytes(b"no store" * 1000)
    with pytest.raises(DamagedError):
        connect()
    assert setup.report().findings


def test_a_host_reports_what_it_can_do_and_its_kernels(home: Path) -> None:
    with LocalHost() as host:
        assert host.report().verdict == setup.report(host.home).verdict
        assert [current for _, current in host.kernels()].count(True) <= 1


def test_the_commands_load_no_manager_before_one_of_them_needs_it() -> None:
    seen = "import sys, cerne.cli.app, cerne.client; print('cerne.manager' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", seen], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_log_is_read_on_from_where_one_was(home: Path) -> None:
    with LocalHost() as host:
        images, disk = host.images, host.home.images / "work" / "disk"
        disk.write_bytes(bytes(1 << 20))
        images.add("blank", Parts(disk=disk, disk_size=1 << 20), source="a test")
        web = host.create(machine_spec(name="web", image="blank", memory="64M"))
        assert web.read_log(0) == b""
        web.console_log.write_bytes(b"one two")
        web.engine_log.write_bytes(b"three")
        assert (web.read_log(0), web.read_log(4), web.read_log(9)) == (b"one two", b"two", b"")
        assert web.read_log(0, engine=True) == b"three"
        assert (web.read_log(4, most=2), web.log_size(), web.log_size(engine=True)) == (b"tw", 7, 5)
