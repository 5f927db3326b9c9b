"""The processes that serve devices of a machine: they come back when they die, and go when it ends.

Here the test is the machine: it has the connection, the leash and the address.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
from tests.devices.test_vhost_user import Served
from tests.engine.fuse import MODE, OWNERS, Files, Refused
from tests.network.test_guest_frames import tcp, udp
from tests.processes import commands, opened_files, parents
from tests.waiting import PATIENCE

from cerne.devices.vhost_user.device import VhostUserBlock, VhostUserFs
from cerne.engine import supervised
from cerne.engine.cards import connected_card
from cerne.engine.native.backends import disk_backend, require_readable, share_backend
from cerne.engine.opened import Opened
from cerne.engine.plan import DiskPlan, KernelBoot, LaunchPlan, PortForward, SharePlan, UserNic
from cerne.engine.supervised import require_served
from cerne.engine.supervisor import Task
from cerne.errors import EngineError, ImageError
from cerne.host.members import Members, supervisor_of
from cerne.host.notes import Notes
from cerne.host.process import ProcessIdentity
from cerne.host.programs import find_program
from cerne.kvm.memory import GuestAddress, GuestMemory
from cerne.network.guest_frames import framed, frames_in, udp_payload
from cerne.network.passt import ipv6_interface
from cerne.network.ports import chosen
from cerne.spec.ports import PublishedPort
from cerne.units import MIB
from cerne.vmm.backend import connected
from cerne.vmm.config import BackendConfig

Eventually = Callable[[Callable[[], bool]], None]


@dataclass
class Kept:
    """A backend's end in the test's hands."""

    config: BackendConfig
    connected: bool = False

    def connect(self) -> socket.socket:
        """The first connection, and others by the address: a machine can look up no name."""
        if not self.connected:
            self.connected = True
            return socket.socket(fileno=os.dup(self.config.link))
        assert self.config.address is not None
        return connected(self.config.address)

    def processes(self) -> dict[int, str]:
        """The supervisors that this process has started, and all below them, by their commands."""
        found, parent = commands(), parents()
        lines = {pid: b" ".join(found[pid]).decode(errors="replace") for pid in found}
        kept = {
            pid
            for pid, line in lines.items()
            if "supervise.py" in line and parent.get(pid) == os.getpid()
        }
        while below := {pid for pid in lines if parent.get(pid) in kept} - kept:
            kept |= below
        return {pid: lines[pid] for pid in kept if lines[pid]}

    def backends(self) -> list[int]:
        return [pid for pid, line in self.processes().items() if "supervise.py" not in line]

    def die(self) -> None:
        for pid in self.backends():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _plan(home: Path, disks: tuple[DiskPlan, ...], shares: tuple[SharePlan, ...]) -> LaunchPlan:
    boot = KernelBoot(home / "kernel", None, "")
    return LaunchPlan("m", "m", 2, 16 * MIB, boot, disks, (), shares, home, home)


def _require(program: str) -> None:
    if find_program(program) is None:
        pytest.skip(f"{program} is not installed")


@pytest.fixture
def opened() -> Iterator[Opened]:
    with Opened() as opened:
        yield opened


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory.shared([(GuestAddress(0), 1 << 20)]) as memory:
        yield memory


@pytest.fixture
def disk(home: Path, opened: Opened) -> Kept:
    _require("qemu-storage-daemon")
    image = home / "image"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vmdk", str(image), str(MIB)], check=True)
    image.chmod(0o600)
    config = disk_backend(_plan(home, (DiskPlan(image, "vmdk"),), ()), 0, opened)
    return Kept(config)


def test_a_disk_of_another_format_is_served_and_kept_so(
    disk: Kept, memory: GuestMemory, eventually: Eventually, home: Path
) -> None:
    make = partial(VhostUserBlock, queues=4, patience=30)
    with contextlib.closing(Served(memory, disk, make)) as served:
        served.start()
        served.offer(1, 3, b"z" * 512)
        assert served.answer() == (0, b"")
        (pid,) = disk.backends()
        if os.geteuid() == 0:
            status = Path(f"/proc/{pid}/status").read_text()
            assert "CapPrm:\t0000000000000000" in status
            assert "NoNewPrivs:\t1" in status
        served.kill()
        served.offer(0, 3, room=512)
        # Its supervisor has started another one.
        served.device.reconnect(disk.connect())
        assert served.answer(512) == (0, b"z" * 512)
    with socket.socket(fileno=os.dup(disk.config.leash or -1)) as leash:
        leash.send(b"end")
        # It may have left without reading, where its backend had just died.
        with contextlib.suppress(ConnectionResetError):
            assert leash.recv(1) == b""
    eventually(lambda: disk.processes() == {})


def test_a_disk_goes_with_a_machine_that_was_killed(
    disk: Kept, opened: Opened, eventually: Eventually
) -> None:
    eventually(lambda: bool(disk.processes()))
    opened.__exit__()
    opened._descriptors.clear()
    eventually(lambda: disk.processes() == {})


def test_a_disk_that_cannot_be_says_so_and_ends(
    home: Path, opened: Opened, eventually: Eventually
) -> None:
    _require("qemu-storage-daemon")
    image = home / "image"
    image.write_bytes(bytes(MIB))
    config = disk_backend(_plan(home, (DiskPlan(image, "vmdk"),), ()), 0, opened)
    kept = Kept(config)
    eventually(lambda: "invalid VMDK" in (home / "disk0.log").read_text())
    eventually(lambda: kept.processes() == {})


@dataclass
class Network:
    """A network card's passt, with the other end of its cable in the test's hands."""

    home: Path
    opened: Opened
    link: int

    @property
    def members(self) -> Members:
        return Members(self.home)

    def passt(self) -> list[ProcessIdentity]:
        return self.members.alive("net0")

    def notes(self) -> list[str]:
        with Notes(self.home).taken() as words:
            return words


@pytest.fixture
def network(home: Path, opened: Opened) -> Callable[[int], Network]:
    _require("passt")

    def make(port: int) -> Network:
        nic = UserNic("02:00:00:00:00:01", (PortForward("127.0.0.1", port, 80),))
        plan = replace(_plan(home, (), ()), nics=(nic,))
        return Network(home, opened, connected_card(plan, nic, opened))

    return make


def _refuses(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) != 0


def test_passt_is_started_again_with_its_ports(
    network: Callable[[int], Network], opened: Opened, eventually: Eventually
) -> None:
    with chosen([PublishedPort("127.0.0.1", 0, 80)]) as (port,):
        net = network(port.host_port)
        require_served(opened.reports)
    # From its report on it serves.
    assert not _refuses(port.host_port)
    (first,) = net.passt()
    first.send(signal.SIGKILL)
    first.wait()
    eventually(lambda: not _refuses(port.host_port))
    (second,) = net.passt()
    assert second != first
    assert net.notes() == ["passt, which serves net0 of m, was killed by SIGKILL; it was restarted"]
    assert net.members.lost() == []
    opened.__exit__()
    opened._descriptors.clear()
    eventually(lambda: net.members.alive() == [])
    # It ended with the machine, which is nothing to note.
    assert net.notes() == []


def test_passt_that_cannot_serve_is_said_at_the_start(
    network: Callable[[int], Network], opened: Opened, eventually: Eventually
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        net = network(taken.getsockname()[1])
        with pytest.raises(EngineError, match=r"passt, .* ended with status 1: Failed to bind"):
            require_served(opened.reports)
        eventually(lambda: net.members.alive() == [])


def test_passt_ends_with_its_supervisor_and_is_missed(
    network: Callable[[int], Network], opened: Opened, eventually: Eventually
) -> None:
    with chosen([PublishedPort("127.0.0.1", 0, 80)]) as (port,):
        net = network(port.host_port)
        require_served(opened.reports)
    (supervisor,) = net.members.alive(supervisor_of("net0"))
    supervisor.send(signal.SIGKILL)
    eventually(lambda: net.passt() == [])
    (lost,) = net.members.lost()
    assert (lost.role, lost.noted) == ("net0", False)
    lost.note()
    assert [member.noted for member in net.members.lost()] == [True]


@pytest.fixture
def services() -> Iterator[dict[str, socket.socket]]:
    """Services at some addresses of the host."""
    with contextlib.ExitStack() as open_:
        made = {}
        for address in ("127.0.0.1", "0.0.0.0", "::1"):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            service = open_.enter_context(socket.socket(family))
            try:
                service.bind((address, 0))
            except OSError:
                continue
            service.listen()
            made[address] = service
        yield made


def _named(pid: int) -> set[str]:
    """What a process has open that has a name in a file system."""
    return {name for name in opened_files(pid) if name.startswith("/")}


def test_what_serves_a_card_has_no_more_than_it_needs(
    network: Callable[[int], Network],
    opened: Opened,
    home: Path,
    root: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SECRET", "1234")
    with chosen([PublishedPort("127.0.0.1", 0, 80)]) as (port,):
        network(port.host_port)
        require_served(opened.reports)
    members = Members(home)
    (supervisor,), (passt,) = members.alive("net0-supervisor"), members.alive("net0")
    log, (registration,) = str(home / "net0.log"), (home / "processes").glob("net0.*")
    lease = f"/run/cerne/user-ids/{supervisor.user()}"
    wanted = {log, "/dev/null", str(registration), str(home / "notes"), lease}
    assert _named(supervisor.pid) == wanted
    assert _named(passt.pid) <= {log, "/dev/null", lease}
    for pid in (supervisor.pid, passt.pid):
        assert b"SECRET" not in Path(f"/proc/{pid}/environ").read_bytes()
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert re.search(r"^Max file size +4194304 +4194304 ", limits, re.M)


class Guest:
    """A guest's end of a card: it begins connections, and sees what comes of them."""

    def __init__(self, link: int) -> None:
        self._link = socket.socket(fileno=os.dup(link))
        self._link.settimeout(PATIENCE)
        self._rest = b""

    def close(self) -> None:
        self._link.close()

    def frame(self) -> bytes:
        while True:
            frames, end = frames_in(self._rest, 1 << 17)
            if frames:
                (start, after), whole = frames[0], self._rest
                self._rest = whole[after:]
                return whole[start:after]
            received = self._link.recv(1 << 16)
            assert received, end
            self._rest += received

    def connects(self, address: str, port: int) -> bool:
        """Whether a connection begins; else it is refused."""
        self._link.sendall(framed(tcp(address, port)))
        at = 54 if ":" in address else 34
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        start = 22 if ":" in address else 26
        expected = socket.inet_pton(family, address)
        while True:
            frame = self.frame()
            if frame[start:].startswith(expected) and frame[at : at + 2] == port.to_bytes(2):
                return frame[at + 13] & 0x12 == 0x12

    def asks(self, question: bytes) -> bytes:
        self._link.sendall(framed(udp("10.0.2.3", 53, question)))
        while (frame := self.frame())[34:36] != (53).to_bytes(2):
            pass
        return udp_payload(frame)


@pytest.fixture
def guest(
    home: Path, opened: Opened
) -> Iterator[Callable[[tuple[int, ...], tuple[PortForward, ...]], Guest]]:
    _require("passt")
    made: list[Guest] = []

    def make(host_access: tuple[int, ...], ports: tuple[PortForward, ...] = ()) -> Guest:
        nic = UserNic("02:00:00:00:00:01", ports, host_access=host_access)
        made.append(Guest(connected_card(_plan(home, (), ()), nic, opened)))
        require_served(opened.reports)
        return made[-1]

    yield make
    for guest in made:
        guest.close()


def _own_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.7", 9))
        except OSError:
            return "127.0.0.9"
        return str(probe.getsockname()[0])


def test_the_hosts_services_are_closed(
    guest: Callable[..., Guest], services: dict[str, socket.socket]
) -> None:
    card = guest(())
    for address in ("10.0.2.2", "10.0.2.3", "127.0.0.1", "169.254.169.254", _own_address()):
        for service in services.values():
            assert not card.connects(address, service.getsockname()[1])
    assert not card.connects("fe80::2", services["127.0.0.1"].getsockname()[1])
    assert not card.connects("::1", services["127.0.0.1"].getsockname()[1])
    assert not card.connects("fd00:ec2::254", 80)


def test_a_port_of_the_host_is_opened_by_name(
    guest: Callable[..., Guest], services: dict[str, socket.socket]
) -> None:
    service, other = services["127.0.0.1"], services["0.0.0.0"]
    card = guest((service.getsockname()[1],))
    assert card.connects("10.0.2.2", service.getsockname()[1])
    service.settimeout(PATIENCE)
    service.accept()[0].close()
    assert not card.connects("10.0.2.2", other.getsockname()[1])
    assert not card.connects(_own_address(), service.getsockname()[1])
    other.setblocking(False)
    with pytest.raises(BlockingIOError):
        other.accept()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_published_port_leads_to_the_guest(guest: Callable[..., Guest], address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    if family == socket.AF_INET6 and ipv6_interface(anyway=True) is None:
        pytest.skip("no interface of this host has IPv6")
    with socket.socket(family) as probe:
        probe.bind((address, 0))
        port = probe.getsockname()[1]
    card = guest((), (PortForward(address, port, 80),))
    with socket.socket(family) as client:
        client.setblocking(False)
        client.connect_ex((address, port))
        at = 54 if family == socket.AF_INET6 else 34
        while (frame := card.frame())[at + 2 : at + 4] != (80).to_bytes(2):
            pass
        assert frame[at + 13] & 0x12 == 0x02


def test_a_name_is_asked_of_the_hosts_servers(guest: Callable[..., Guest]) -> None:
    question = bytes.fromhex("123401000001000000000000") + b"\x09localhost\0\0\1\0\1"
    # Whatever the servers of this host say, the guest has an answer to its question.
    assert guest(()).asks(question)[:2] == question[:2]


@pytest.mark.parametrize("read_only", [False, True])
def test_a_directory_is_served_and_goes_with_its_machine(
    home: Path, opened: Opened, root: None, eventually: Eventually, read_only: bool
) -> None:
    _require("virtiofsd")
    source = home / "a,b"
    source.mkdir()
    plan = _plan(home, (), (SharePlan("share0", source, read_only),))
    config = share_backend(plan, 0, opened)
    kept = Kept(config)
    device = VhostUserFs(socket.socket(fileno=os.dup(config.link)), "share0", patience=30)
    eventually(lambda: bool(kept.backends()))
    mounts = Path(f"/proc/{kept.backends()[-1]}/mountinfo").read_text()
    assert (" ro," in mounts.splitlines()[0]) == read_only
    device.close()
    opened.__exit__()
    opened._descriptors.clear()
    eventually(lambda: kept.processes() == {})


@pytest.mark.parametrize("strict", [True, False])
def test_what_serves_a_strict_machine_shares_no_core(
    home: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch, strict: bool
) -> None:
    _require("virtiofsd")
    started: list[list[str]] = []
    monkeypatch.setattr(supervised, "spawn", lambda argv, *_: started.append(argv))
    plan = replace(_plan(home, (), (SharePlan("share0", home, False),)), strict=strict)
    share_backend(plan, 0, opened)
    (argv,) = started
    assert ("own-cores" in Task.from_word(argv[-1]).room) == strict


def test_a_guest_makes_no_setuid_file_and_no_device(
    home: Path, opened: Opened, root: None, memory: GuestMemory
) -> None:
    _require("virtiofsd")
    source = home / "a,b"
    source.mkdir()
    former = source / "former"
    former.touch()
    former.chmod(0o6777)
    config = share_backend(_plan(home, (), (SharePlan("share0", source, False),)), 0, opened)
    files = Files(memory, Kept(config), "share0")
    with contextlib.closing(files.served):
        node = files.create("new", 0o755)
        for mode in (0o4755, 0o2755, 0o6755):
            for refused in (
                partial(files.set, node, MODE, mode),
                partial(files.create, f"{mode:o}", mode),
                partial(files.make_node, f"node-{mode:o}", stat.S_IFREG | mode),
            ):
                with pytest.raises(Refused, match=str(errno.EPERM)):
                    refused()
        with pytest.raises(Refused, match=str(errno.EPERM)):
            files.make_node("device", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        files.write(files.look_up("former"), b"#!/bin/sh")
        # Owners and other modes are the guest's.
        files.set(node, OWNERS, user=1234, group=1235)
        files.set(node, MODE, 0o1751)
    status = (source / "new").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (1234, 1235, 0o1751)
    assert former.read_bytes() == b"#!/bin/sh"
    assert former.stat().st_mode & 0o7777 == 0o777
    assert {path.name for path in source.iterdir()} == {"new", "former"}


@pytest.mark.parametrize(
    ("options", "read_only", "said"),
    [
        (("-o", "compat=0.10"), False, "version 2"),
        (("-o", "extended_l2=on"), True, "does not know"),
        (("-o", "compression_type=zstd"), True, "does not know"),
        (("-o", "compat=0.10"), True, ""),
        ((), False, ""),
    ],
)
def test_what_the_vmm_does_not_read_is_refused_before_it_starts(
    tmp_path: Path, options: tuple[str, ...], read_only: bool, said: str
) -> None:
    if find_program("qemu-img") is None:
        pytest.skip("qemu-img is not installed")
    path = tmp_path / "disk.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", *options, str(path), "8M"], check=True
    )
    before = path.read_bytes()
    disk = DiskPlan(path, "qcow2", read_only, shared=True)
    if said:
        with pytest.raises(ImageError, match=said) as refused:
            require_readable(disk)
        assert str(path) in refused.value.message
        assert "--engine qemu" in refused.value.hint
    else:
        require_readable(disk)
    assert path.read_bytes() == before
