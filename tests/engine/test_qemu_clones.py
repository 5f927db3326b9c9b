"""A Linux guest that is booted once: what its clones share, and what each has of its own."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.waiting import PATIENCE

from cerne.engine.base import Instance
from cerne.engine.plan import DiskPlan, KernelBoot, LaunchPlan, UserNic
from cerne.engine.qemu import QemuEngine
from cerne.engine.qemu.accelerator import Accelerator
from cerne.engine.qmp import QmpClient
from cerne.engine.saved import MEMORY_FILE
from cerne.guest import GuestAgent
from cerne.images.kernel import current_kernel
from cerne.images.tiny import COMMAND_LINE
from cerne.images.tiny import build as build_tiny
from cerne.manager import Home
from cerne.storage.overlay import create_overlay
from cerne.units import MIB

_READY = 120.0
_MARK = "before-it-was-saved"


class Guests:
    """Guests of the tiny image; none is left when the tests are over."""

    def __init__(self, home: Path) -> None:
        self.engine = QemuEngine(Accelerator.TCG)
        self._home = home
        parts = build_tiny(home, Home.of_this_user().cache, lambda *_: None)
        assert parts.kernel is not None
        self._boot = KernelBoot(parts.kernel, parts.initrd, COMMAND_LINE)
        self._instances: dict[Path, Instance] = {}

    def plan(self, name: str, number: int) -> LaunchPlan:
        directory = self._home / name
        directory.mkdir()
        nics = (UserNic(_mac(number)),)
        memory = 256 * MIB
        return LaunchPlan(name, name, 1, memory, self._boot, (), nics, (), directory, directory)

    def saved(self, name: str) -> Path:
        directory = self._home / f"{name}.saved"
        directory.mkdir()
        return directory

    def start(self, plan: LaunchPlan) -> GuestAgent:
        self.engine.require(plan)
        self._instances[plan.runtime] = self.engine.start(plan)
        agent = GuestAgent(plan.agent_sockets)
        agent.wait_ready(_READY, self.instance(plan).process.alive)
        return agent

    def instance(self, plan: LaunchPlan) -> Instance:
        """The machine that was started by this plan, or by another with its directories."""
        return self._instances[plan.runtime]

    def close(self) -> None:
        for instance in self._instances.values():
            instance.kill()
            instance.wait(PATIENCE)


def _mac(number: int) -> str:
    return f"02:00:00:00:00:{number:02x}"


def _said(agent: GuestAgent, script: str) -> str:
    done = agent.run(["sh", "-c", script], timeout=PATIENCE)
    assert done.status == 0, done.stderr
    return done.stdout.decode().strip()


@pytest.fixture(scope="module")
def guests(qemu: Path) -> Iterator[Guests]:
    if current_kernel(Home.of_this_user().cache) is None:
        pytest.skip("the guest kernel is not built: cerne kernel build")
    home = Path(tempfile.mkdtemp(prefix="cerne-", dir="/tmp"))
    made = Guests(home)
    yield made
    made.close()
    shutil.rmtree(home)


@pytest.fixture(scope="module")
def template(guests: Guests) -> Path:
    """A guest saved with its memory in a file, while a command ran in it by an open session."""
    saved = guests.saved("template")
    plan = replace(guests.plan("template", 1), memory_file=saved / MEMORY_FILE)
    agent = guests.start(plan)
    _said(agent, f"echo {_MARK} >/tmp/mark")
    with agent.popen(["cat"]) as process:
        process.write(b"x")
        assert process.read(60) is not None
        guests.instance(plan).save(saved, (), resume=False)
    return saved


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """An overlay of an empty disk."""
    base = tmp_path / "base.raw"
    base.write_bytes(bytes(MIB))
    overlay = tmp_path / "disk.qcow2"
    create_overlay(base, "raw", overlay)
    return overlay


def test_clones_have_their_own_identity(guests: Guests, template: Path) -> None:
    names = ("one", "two")
    said = []
    for number, name in enumerate(names, start=2):
        agent = guests.start(replace(guests.plan(name, number), saved=template))
        agent.renew(hostname=name, mac=_mac(number))
        said.append(
            (
                agent.info(),
                _said(agent, "cat /tmp/mark"),
                _said(agent, "cat /sys/class/net/eth0/address"),
                _said(agent, "head -c 16 /dev/urandom | od -An -tx1"),
                _said(agent, "ip route; ip -4 addr show eth0"),
            )
        )
        assert abs(int(_said(agent, "date +%s")) - time.time()) < 30
        assert _said(agent, "cat /etc/hostname") == name
    one, two = said
    assert (one[0].hostname, two[0].hostname) == names
    assert one[0].uptime > 0
    assert one[1] == two[1] == _MARK
    assert (one[2], two[2]) == (_mac(2), _mac(3))
    assert one[3] != two[3]
    assert "default via 10.0.2.2" in one[4]
    assert "10.0.2.15" in one[4]


def test_a_session_that_was_open_is_over_in_a_clone(guests: Guests, template: Path) -> None:
    agent = guests.start(replace(guests.plan("later", 4), saved=template))
    ended = "for i in $(seq 100); do pidof cat >/dev/null || exit 0; usleep 100000; done; exit 1"
    assert agent.run(["sh", "-c", ended], timeout=PATIENCE).status == 0


def test_a_running_machine_is_saved_with_its_memory_and_runs_on(guests: Guests) -> None:
    plan = guests.plan("first", 5)
    agent = guests.start(plan)
    _said(agent, "echo 1 >/tmp/count")
    saved = guests.saved("first")
    guests.instance(plan).save(saved, (), resume=True)
    _said(agent, "echo 2 >/tmp/count")
    assert not (saved / MEMORY_FILE).exists()
    restored = guests.start(replace(guests.plan("second", 6), saved=saved))
    assert _said(restored, "cat /tmp/count") == "1"
    assert _said(agent, "cat /tmp/count") == "2"


@pytest.mark.slow
def test_a_clone_that_frees_memory_takes_it_from_no_other(guests: Guests) -> None:
    saved = guests.saved("full")
    memory = saved / MEMORY_FILE
    plan = replace(guests.plan("full", 7), memory_file=memory)
    agent = guests.start(plan)
    _said(agent, "dd if=/dev/urandom of=/tmp/data bs=1M count=32; sha256sum </tmp/data >/tmp/sum")
    guests.instance(plan).save(saved, (), resume=False)
    before = memory.stat()
    clone = guests.start(replace(guests.plan("frees", 8), saved=saved))
    # Free pages are reported to a host two seconds after they came to be.
    _said(clone, "rm /tmp/data; sleep 3")
    after = memory.stat()
    assert (after.st_blocks, after.st_mtime_ns) == (before.st_blocks, before.st_mtime_ns)
    other = guests.start(replace(guests.plan("keeps", 9), saved=saved))
    assert _said(other, "sha256sum </tmp/data") == _said(other, "cat /tmp/sum")


def test_a_clone_is_saved_itself_with_its_memory(guests: Guests, template: Path) -> None:
    plan = replace(guests.plan("clone", 10), saved=template)
    agent = guests.start(plan)
    _said(agent, "echo mine >/tmp/own")
    saved = guests.saved("clone")
    guests.instance(plan).save(saved, (), resume=True)
    restored = guests.start(replace(guests.plan("grandchild", 11), saved=saved))
    assert _said(restored, "cat /tmp/mark /tmp/own").split() == [_MARK, "mine"]


def test_a_disk_goes_back_with_the_memory(guests: Guests, disk: Path) -> None:
    plan = replace(guests.plan("disk", 12), disks=(DiskPlan(disk, "qcow2"),))
    agent = guests.start(plan)
    _said(agent, "echo early >/dev/vda; sync; cat </dev/vda | head -n 1 >/tmp/seen")
    layer = disk.rename(disk.with_name("layer.qcow2"))
    create_overlay(layer, "qcow2", disk)
    saved = guests.saved("disk")
    guests.instance(plan).save(saved, plan.disks, resume=True)
    _said(agent, "echo later >/dev/vda; sync")
    other = disk.with_name("other.qcow2")
    create_overlay(layer, "qcow2", other)
    back = replace(guests.plan("back", 13), saved=saved, disks=(DiskPlan(other, "qcow2"),))
    restored = guests.start(back)
    read = "echo 3 >/proc/sys/vm/drop_caches; head -n 1 /dev/vda"
    assert _said(restored, "cat /tmp/seen") == "early"
    assert _said(restored, read) == "early"
    _said(restored, "echo other >/dev/vda; sync")
    assert _said(agent, read) == "later"
    assert _said(restored, read) == "other"


def test_a_paused_machine_has_its_new_disk_once_it_runs_on(guests: Guests, disk: Path) -> None:
    plan = replace(guests.plan("paused", 14), disks=(DiskPlan(disk, "qcow2"),))
    agent = guests.start(plan)
    layer = disk.rename(disk.with_name("layer.qcow2"))
    create_overlay(layer, "qcow2", disk)
    with QmpClient(plan.qmp_socket) as qmp:
        qmp.stop()
    guests.instance(plan).save(guests.saved("paused"), plan.disks, resume=True)
    frozen = layer.stat().st_mtime_ns
    with QmpClient(plan.qmp_socket) as qmp:
        assert qmp.status() == "paused"
        qmp.cont()
    _said(agent, "echo later >/dev/vda; sync")
    assert layer.stat().st_mtime_ns == frozen
