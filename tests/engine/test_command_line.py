"""The arguments of QEMU: what a machine has, and that it has nothing else."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cerne.engine.opened import Opened
from cerne.engine.plan import (
    AGENT_PORTS,
    PLUGGED_MEMORY,
    SLOTS,
    DiskPlan,
    FirmwareBoot,
    KernelBoot,
    LaunchPlan,
    PortForward,
    Protocols,
    SharePlan,
    TapNic,
    UserNic,
)
from cerne.engine.qemu import confinement
from cerne.engine.qemu.accelerator import Accelerator
from cerne.engine.qemu.command_line import command_line
from cerne.engine.qmp.memory import BLOCK_SIZE
from cerne.engine.saved import SavedMachine
from cerne.spec.resources import MemoryResources, Resources
from cerne.units import MIB

PLAN = LaunchPlan(
    machine_id="0123456789ab",
    name="web",
    cpus=2,
    memory=512 << 20,
    boot=KernelBoot(Path("/k/vmlinux"), Path("/k/initrd"), "console=ttyS0 quiet"),
    disks=(DiskPlan(Path("/d/root.qcow2"), "qcow2", serial="root"),),
    nics=(UserNic("02:00:00:00:00:01", (PortForward("127.0.0.1", 8080, 80),)),),
    shares=(SharePlan("share0", Path("/srv"), read_only=False),),
    runtime=Path("/run/m"),
    logs=Path("/log/m"),
)

# A change of each field of the plan.
CHANGES: dict[str, object] = {
    "name": "db",
    "cpus": 3,
    "max_cpus": 4,
    "memory": 1 << 30,
    "boot": FirmwareBoot(),
    "disks": (),
    "nics": (),
    "shares": (),
    "runtime": Path("/run/n"),
    "logs": Path("/log/n"),
    "headroom": 1 << 30,
    "saved": Path("/saved"),
    "memory_file": Path("/saved/memory"),
}
# The manager's name for the machine, which its process has no use for.
# Nor what is said by QMP once it runs.
# Nor what its launcher does before.
UNUSED = {"machine_id", "balloon", "agent", "resources", "strict"}

PATHS = st.text(st.characters(blacklist_characters="\0", codec="utf-8"), min_size=1).map(
    lambda text: Path("/") / text.lstrip("/")
)


def argv(plan: LaunchPlan = PLAN, accelerator: Accelerator = Accelerator.TCG) -> list[str]:
    return command_line(Path("/usr/bin/qemu-system-x86_64"), plan, accelerator, 7)


def values(option: str, arguments: list[str]) -> list[str]:
    return [value for name, value in itertools.pairwise(arguments) if name == option]


def options(text: str) -> dict[str, str]:
    """A list of options as QEMU reads it: a doubled comma is a comma."""
    parts = text.replace(",,", "\0").split(",")
    pairs = (part.replace("\0", ",").partition("=") for part in parts)
    return {name: value for name, _, value in pairs}


def devices(arguments: list[str]) -> list[str]:
    return [text.partition(",")[0] for text in values("-device", arguments)]


def test_each_field_of_the_plan_shows() -> None:
    fields = {field.name for field in dataclasses.fields(LaunchPlan)}
    assert fields == set(CHANGES) | UNUSED
    for field, value in CHANGES.items():
        assert argv(dataclasses.replace(PLAN, **{field: value})) != argv(), field  # type: ignore[arg-type]


def test_the_process_may_do_no_more_than_it_needs() -> None:
    arguments = argv()
    assert {"-nodefaults", "-no-user-config"} <= set(arguments)
    assert "-no-reboot" not in arguments
    assert values("-sandbox", arguments) == [
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
    ]
    assert values("-display", arguments) == ["none"]


def test_the_machine_has_these_devices_and_no_others() -> None:
    assert sorted(devices(argv())) == sorted(
        [
            "virtio-serial-pci",
            *["virtserialport"] * AGENT_PORTS,
            *["pcie-root-port"] * SLOTS,
            "virtio-blk-pci",
            "virtio-net-pci",
            "virtio-9p-pci",
            "virtio-rng-pci",
            "virtio-balloon-pci",
            "pvpanic-pci",
            "vmgenid",
        ]
    )


def test_memory_is_plugged_by_a_device_that_a_saved_machine_has_as_it_was() -> None:
    plan = dataclasses.replace(PLAN, memory=256 * MIB, headroom=2 * BLOCK_SIZE + MIB)
    arguments = argv(plan)
    assert values("-m", arguments) == ["size=256M,slots=1,maxmem=512M"]
    assert f"memory-backend-ram,id=room,size={2 * BLOCK_SIZE},reserve=off" in arguments
    [device] = [text for text in values("-device", arguments) if text.startswith("virtio-mem")]
    assert options(device)["block-size"] == str(BLOCK_SIZE)
    grown = SavedMachine("x", 512 * MIB, "", headroom=2 * BLOCK_SIZE, plugged=2 * BLOCK_SIZE)
    plan = dataclasses.replace(plan, memory=512 * MIB, saved=Path("/saved"))
    arguments = command_line(Path("/q"), plan, Accelerator.TCG, 7, saved=grown)
    assert values("-m", arguments) == ["size=256M,slots=1,maxmem=512M"]
    older = SavedMachine("x", 512 * MIB, "")
    arguments = command_line(Path("/q"), plan, Accelerator.TCG, 7, saved=older)
    assert values("-m", arguments) == ["size=512M"]
    assert "virtio-mem-pci" not in devices(arguments)


def test_hugepages_and_merging_are_only_for_machines_that_ask_for_them() -> None:
    [machine] = [text for text in values("-machine", argv()) if text.startswith("q35")]
    assert options(machine)["mem-merge"] == "off"
    asked = Resources(memory=MemoryResources(merge=True))
    arguments = argv(dataclasses.replace(PLAN, resources=asked))
    [machine] = [text for text in values("-machine", arguments) if text.startswith("q35")]
    assert options(machine)["mem-merge"] == "on"
    asked = Resources(memory=MemoryResources(hugepages=True))
    arguments = argv(dataclasses.replace(PLAN, resources=asked))
    assert "memory-backend=pc.ram" in values("-machine", arguments)
    [memory] = [text for text in values("-object", arguments) if "pc.ram" in text]
    assert options(memory)["hugetlb"] == "on"
    assert options(memory)["size"] == str(PLAN.memory)


def test_a_guest_has_sockets_where_the_host_has_vhost_vsock() -> None:
    arguments = command_line(Path("/q"), PLAN, Accelerator.KVM, 7, vsock_cid=1 << 30)
    names = devices(arguments)
    # The balloon, which may be missing, stays the last: no other then has another place.
    assert names.index("vhost-vsock-pci") == names.index("virtio-balloon-pci") - 1
    [sockets] = [text for text in values("-device", arguments) if "vsock" in text]
    assert options(sockets)["guest-cid"] == str(1 << 30)


def test_agent_ports_have_the_names_that_the_agent_looks_for() -> None:
    ports = [text for text in values("-device", argv()) if text.startswith("virtserialport")]
    names = [options(port)["name"] for port in ports]
    assert names == [f"org.cerne.agent.{number}" for number in range(AGENT_PORTS)]
    assert len({options(port)["nr"] for port in ports} - {"0"}) == AGENT_PORTS


def test_kvm_runs_the_hosts_processor_and_tcg_the_largest() -> None:
    assert values("-cpu", argv(accelerator=Accelerator.KVM)) == ["host"]
    assert values("-accel", argv(accelerator=Accelerator.KVM)) == ["kvm"]
    assert values("-cpu", argv()) == ["max"]


def test_emulated_kernels_are_spared_what_does_not_apply() -> None:
    plan = dataclasses.replace(PLAN, nics=())
    [native] = values("-append", argv(plan, Accelerator.KVM))
    assert native == f"console=ttyS0 quiet panic=-1 {PLUGGED_MEMORY} ip=::::web::off"
    [line] = values("-append", argv())
    assert {"tsc=reliable", "mitigations=off", "no_timer_check"} <= set(line.split())


def test_the_kernel_is_told_its_network_where_there_is_a_card() -> None:
    [line] = values("-append", argv())
    assert "ip=10.0.2.15::10.0.2.2:255.255.255.0:web:eth0:off:10.0.2.3" in line.split()


def test_what_the_image_says_of_a_parameter_stands() -> None:
    boot = KernelBoot(Path("/k"), None, "panic=5 mitigations=auto tsc=unstable -- panic=7 single")
    [line] = values("-append", argv(dataclasses.replace(PLAN, boot=boot)))
    kernel, _, init = line.partition(" -- ")
    assert init == "panic=7 single"
    words = kernel.split()
    assert [word for word in words if word.startswith(("panic", "mitigations", "tsc"))] == [
        "panic=5",
        "mitigations=auto",
        "tsc=unstable",
    ]
    assert "no_timer_check" in words


def test_a_machine_that_boots_from_its_disk_has_no_kernel() -> None:
    arguments = argv(dataclasses.replace(PLAN, boot=FirmwareBoot()))
    assert not {"-kernel", "-initrd", "-append"} & set(arguments)


@pytest.mark.parametrize("read_only", [True, False])
def test_disks_keep_order_format_and_mode(read_only: bool) -> None:
    disks = (
        DiskPlan(Path("/d/a,b.qcow2"), "qcow2", serial="root"),
        DiskPlan(Path('/d/"b".raw'), "raw", read_only=read_only),
    )
    arguments = argv(dataclasses.replace(PLAN, disks=disks))
    nodes = [json.loads(text) for text in values("-blockdev", arguments)]
    assert [node["driver"] for node in nodes] == ["qcow2", "raw"]
    assert [node["file"]["filename"] for node in nodes] == ["/d/a,b.qcow2", '/d/"b".raw']
    assert [node["read-only"] for node in nodes] == [False, read_only]
    assert not any("cache" in node for node in nodes)
    cards = [options(text) for text in values("-device", arguments) if "virtio-blk" in text]
    assert [card["drive"] for card in cards] == ["disk0", "disk1"]
    assert [card.get("serial") for card in cards] == ["root", None]


def test_a_card_on_a_tap_has_its_descriptor() -> None:
    nic = TapNic("02:00:00:00:00:01", "tap0")
    plan = dataclasses.replace(PLAN, nics=(nic,))
    arguments = command_line(
        Path("/usr/bin/qemu"), plan, Accelerator.TCG, 3, tap_descriptors={nic.mac: 7}
    )
    assert values("-netdev", arguments) == ["tap,id=net0,fd=7"]
    [card] = [text for text in values("-device", arguments) if "virtio-net" in text]
    assert options(card)["mac"] == nic.mac
    # Its addresses are not ours to tell.
    [line] = values("-append", arguments)
    assert "ip=::::web::off" in line.split()


def test_published_ports_are_forwarded() -> None:
    forwards = (
        PortForward("127.0.0.1", 8080, 80),
        PortForward("0.0.0.0", 5353, 53, Protocols.UDP),
    )
    nic = UserNic("02:00:00:00:00:01", forwards)
    arguments = argv(dataclasses.replace(PLAN, nics=(nic,)))
    [netdev] = values("-netdev", arguments)
    assert netdev.split(",")[-2:] == [
        "hostfwd=tcp:127.0.0.1:8080-:80",
        "hostfwd=udp:0.0.0.0:5353-:53",
    ]
    [card] = [text for text in values("-device", arguments) if "virtio-net" in text]
    assert options(card)["mac"] == nic.mac


@pytest.mark.parametrize(("user", "model"), [(0, "passthrough"), (1000, "none")])
def test_a_writable_share_has_the_guests_owners_and_modes(
    monkeypatch: pytest.MonkeyPatch, user: int, model: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    [share] = values("-fsdev", argv())
    assert options(share)["security_model"] == model
    assert "readonly" not in options(share)


def test_a_read_only_share_is_read_only() -> None:
    plan = dataclasses.replace(PLAN, shares=(SharePlan("s", Path("/srv"), read_only=True),))
    [share] = values("-fsdev", argv(plan))
    assert options(share)["readonly"] == "on"


@given(PATHS, PATHS)
def test_no_path_can_add_an_option(runtime: Path, source: Path) -> None:
    shares = (SharePlan("share0", source, read_only=True),)
    plan = dataclasses.replace(PLAN, runtime=runtime, logs=runtime, shares=shares)
    arguments = argv(plan)
    [share] = values("-fsdev", arguments)
    assert options(share)["path"] == str(source)
    consoles = [options(text) for text in values("-chardev", arguments) if "logfile" in text]
    assert consoles[0]["path"] == str(plan.console_socket)
    assert consoles[0]["logfile"] == str(plan.console_log)
    assert len(arguments) == len(argv(dataclasses.replace(PLAN, shares=shares)))


@pytest.mark.parametrize("reads", [True, False])
def test_the_memory_of_a_saved_machine_is_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: bool
) -> None:
    (tmp_path / "memory").touch()
    SavedMachine("qemu", PLAN.memory, "0" * 64).write(tmp_path)
    plan = dataclasses.replace(PLAN, saved=tmp_path)
    arguments = command_line(Path("/q"), plan, Accelerator.TCG, 7, reads_memory=reads)
    [backend] = [each for each in values("-object", arguments) if "memory-backend-file" in each]
    wanted = {"share": "off", **({"readonly": "on", "rom": "off"} if reads else {})}
    found = options(backend)
    assert {name: found[name] for name in ("share", "readonly", "rom") if name in found} == wanted
    # No QEMU may write to it.
    monkeypatch.setattr(confinement, "limited_log", lambda *_: None)
    with Opened() as opened:
        words = confinement.confined(["/usr/bin/q"], plan, opened, reads_memory=reads)
    assert (f"read={tmp_path}/memory" in words) == reads
    assert any(word.endswith(f",{tmp_path}/memory") for word in words) != reads
    assert f"write={tmp_path}/memory" not in words
