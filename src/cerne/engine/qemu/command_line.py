"""From a `LaunchPlan` to the arguments of qemu-system-x86_64 (qemu(1), QEMU 6.2 and later).

A pure function. The machine has only the devices that are named here, and its process may neither
raise its privileges nor start another program.

The board is q35. Measured on 2026-11-24 (QEMU 7.2, TCG, a kernel of 20 MB with all these devices,
from exec to power-off, 15 boots each): q35 0.59 s with a vmlinux and 0.84 s with a bzImage; microvm
0.47 s with a vmlinux, but 8 of 15 boots hung while the kernel measured its clock, and 0.66 s with a
bzImage. So q35 with a vmlinux is the fastest that always boots, and it has a VM generation ID. The
ports for removable disks and network cards make a boot 0.1 s longer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from cerne.engine.plan import (
    PLUGGED_MEMORY,
    SLOTS,
    DiskPlan,
    FirmwareBoot,
    LaunchPlan,
    NetworkNic,
    Nic,
    PortForward,
    SharePlan,
    TapNic,
)
from cerne.engine.qemu.accelerator import Accelerator
from cerne.engine.qmp.balloon import BALLOON
from cerne.engine.qmp.memory import BLOCK_SIZE, DEVICE
from cerne.engine.saved import MEMORY_FILE, SavedMachine
from cerne.units import MIB
from cerne.vmm.slot_names import device_name

AGENT_PORT_NAME = "org.cerne.agent"
PID_FILE = "qemu/pid"
"""In `LaunchPlan.logs`, in a directory of its own, which QEMU may write to.

QEMU removes it at its own end; after a kill it stays.
"""


MACHINE_VERSION = 2
"""Raised when a device is added, removed or moved: older saved machines do not match then."""

# A device number that no other device of this board has.
_PORTS_PLACE = 0x1E
_MEMORY_PLACE = 0x1D

# QEMU's default name, so that saved memory works with and without a file.
_RAM = "pc.ram"
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

# The translation cache grows with its use; with the default size the kernel's boot flushes it.
_PROCESSORS = {
    Accelerator.KVM: ("-accel", "kvm", "-cpu", "host"),
    Accelerator.TCG: ("-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max"),
}

# A panicked kernel without pvpanic resets at once; otherwise it would spin for ever.
_KERNEL_FLAGS = ("panic=-1", *PLUGGED_MEMORY.split())
# Work that an emulated CPU does not need at boot: measure its clock against emulated timers, guard
# against speculation, test its ciphers.
_TCG_KERNEL_FLAGS = (
    "no_timer_check",
    "tsc=reliable",
    "mitigations=off",
    "random.trust_cpu=on",
    "cryptomgr.notests",
)


def command_line(
    binary: Path,
    plan: LaunchPlan,
    accelerator: Accelerator,
    qmp_descriptor: int,
    disk_descriptors: Sequence[Sequence[int]] = (),
    vsock_cid: int | None = None,
    tap_descriptors: Mapping[str, int] = MappingProxyType({}),
    link_descriptors: Mapping[str, int] = MappingProxyType({}),
    sockets: Mapping[Path, int] = MappingProxyType({}),
    *,
    balloon: bool = True,
    saved: SavedMachine | None = None,
    reads_memory: bool = False,
) -> list[str]:
    """The arguments that start this machine; `qmp_descriptor` is a listening socket.

    `disk_descriptors` are those of each disk's file, one for each mode (written, only read),
    because the file may get another name while the machine runs. Without them QEMU opens the disks
    by their names. `tap_descriptors` are those of cards on taps, by their addresses,
    `link_descriptors` those of sockets to which cards are connected, and `sockets` those of
    listening sockets, by their paths; QEMU makes the others itself.
    `saved` describes the saved machine from which it starts. If QEMU only `reads_memory` that was
    saved, it opens that file so. With `vsock_cid` the guest has sockets, by the host's vhost-vsock.
    Without `balloon` it has no balloon.
    """
    memory = _sizes(plan, saved)
    return [
        str(binary),
        *("-name", f"guest={_escaped(plan.name)},debug-threads=on"),
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *("-sandbox", _SANDBOX),
        *("-pidfile", str(plan.logs / PID_FILE)),
        # Write to the log, which is its standard error, why the machine ended.
        *("-trace", "enable=qemu_system_shutdown_request"),
        *("-trace", "enable=runstate_set"),
        *_board(plan, accelerator, memory, reads_memory=reads_memory),
        *_boot(plan, accelerator),
        *_qmp(qmp_descriptor),
        *(("-incoming", "defer") if plan.saved is not None else ()),
        *_ports(),
        *_console(plan, sockets),
        *_agent(plan.agent_sockets, sockets),
        *_flatten(
            _descriptors(index, disk, each)
            for index, (disk, each) in enumerate(zip(plan.disks, disk_descriptors, strict=False))
        ),
        *_flatten(
            _disk(index, disk, fdset(index) if disk_descriptors else str(disk.path))
            for index, disk in enumerate(plan.disks)
        ),
        *_flatten(
            _nic(index, nic, plan.name, tap_descriptors, link_descriptors)
            for index, nic in enumerate(plan.nics)
        ),
        *_flatten(_share(index, share) for index, share in enumerate(plan.shares)),
        *("-device", "virtio-rng-pci"),
        *("-device", "pvpanic-pci"),
        *("-device", "vmgenid,guid=auto"),
        *_vsock(vsock_cid),
        *(_balloon(plan) if balloon else ()),
        *_room(memory),
    ]


class _Memory(NamedTuple):
    """Bytes of memory."""

    base: int
    headroom: int


def _sizes(plan: LaunchPlan, saved: SavedMachine | None) -> _Memory:
    """What the machine starts with, and what may be plugged; a saved one has what it had."""
    if saved is None:
        return _Memory(plan.memory, plan.headroom - plan.headroom % BLOCK_SIZE)
    return _Memory(plan.memory - saved.plugged, saved.headroom)


def _room(memory: _Memory) -> Iterator[str]:
    """The device that plugs memory, at a place where no other device is."""
    if memory.headroom:
        room = f"id=room,size={memory.headroom},reserve=off"
        yield from ("-object", f"memory-backend-ram,{room}")
        place = f"bus=pcie.0,addr={_MEMORY_PLACE:#x}"
        device = f"id={DEVICE},memdev=room,block-size={BLOCK_SIZE},{place}"
        yield from ("-device", f"virtio-mem-pci,{device}")


def _board(
    plan: LaunchPlan, accelerator: Accelerator, sizes: _Memory, *, reads_memory: bool
) -> Iterator[str]:
    # Devices that our guests do not use are left out, because probing takes time at boot.
    absent = "smbus=off,sata=off,usb=off,vmport=off,hpet=off"
    # Without graphics the firmware, and the system that it boots, write to the serial port.
    # The host's KSM merges a guest's pages only if asked to: others could find out which are equal.
    merge = "on" if plan.resources.memory.merge else "off"
    yield from ("-machine", f"q35,{absent},graphics=off,dump-guest-core=off,mem-merge={merge}")
    yield from _PROCESSORS[accelerator]
    yield from ("-smp", f"cpus={plan.cpus},maxcpus={plan.most_cpus}")
    most = f",slots=1,maxmem={(sizes.base + sizes.headroom) // MIB}M" if sizes.headroom else ""
    yield from ("-m", f"size={sizes.base // MIB}M{most}")
    memory = _memory_file(plan)
    if memory is not None:
        # The writes of a machine from saved memory are private to it.
        access = "on" if plan.saved is None else "off"
        if plan.saved is not None and reads_memory:
            access += ",readonly=on,rom=off"
        backend = f"id={_RAM},size={sizes.base},mem-path={_escaped(memory)},share={access}"
        yield from ("-object", f"memory-backend-file,{backend}")
        yield from ("-machine", f"memory-backend={_RAM}")
    elif plan.resources.memory.hugepages:
        backend = f"id={_RAM},size={sizes.base},hugetlb=on,hugetlbsize=2M,share=on"
        yield from ("-object", f"memory-backend-memfd,{backend}")
        yield from ("-machine", f"memory-backend={_RAM}")


def _memory_file(plan: LaunchPlan) -> Path | None:
    """The file with the machine's memory, if there is one."""
    if plan.saved is None:
        return plan.memory_file
    saved = plan.saved / MEMORY_FILE
    return saved if saved.exists() else None


def _vsock(cid: int | None) -> Iterator[str]:
    if cid is not None:
        yield from ("-device", f"vhost-vsock-pci,guest-cid={cid}")


def _balloon(plan: LaunchPlan) -> Iterator[str]:
    # QEMU removes a balloon's pages from the memory's file, even if that is mapped copy-on-write
    # (ram_block_discard_range): all other machines would lose them. It is the last device, so that
    # the others have the same place without it.
    if _memory_file(plan) is None:
        options = "free-page-reporting=on,deflate-on-oom=on"
        yield from ("-device", f"virtio-balloon-pci,id={BALLOON},{options}")


def _boot(plan: LaunchPlan, accelerator: Accelerator) -> Iterator[str]:
    boot = plan.boot
    if isinstance(boot, FirmwareBoot):
        return
    flags = _KERNEL_FLAGS + (_TCG_KERNEL_FLAGS if accelerator is Accelerator.TCG else ())
    flags += (plan.network_parameter,)
    yield from ("-kernel", str(boot.kernel))
    if boot.initrd is not None:
        yield from ("-initrd", str(boot.initrd))
    yield from ("-append", _with_flags(boot.command_line, flags))


def _with_flags(text: str, flags: Iterable[str]) -> str:
    # Parameters of the image stay. Flags come before "--", after which init's parameters begin.
    kernel, separator, init = text.partition(" -- ")
    said = {word.partition("=")[0] for word in kernel.split()}
    added = [flag for flag in flags if flag.partition("=")[0] not in said]
    return " ".join([*kernel.split(), *added]) + separator + init


def _qmp(descriptor: int) -> Iterator[str]:
    yield from ("-chardev", f"socket,id=qmp,fd={descriptor},server=on,wait=off")
    yield from ("-mon", "chardev=qmp,mode=control")


def _ports() -> Iterator[str]:
    """A port for each removable device: q35's own bus does not support them."""
    for slot in range(SLOTS):
        several = ",multifunction=on" if slot == 0 else ""
        place = f"bus=pcie.0,addr={_PORTS_PLACE:#x}.{slot:#x}{several}"
        yield from ("-device", f"pcie-root-port,id={_port(slot)},chassis=1,slot={slot + 1},{place}")


def _port(slot: int) -> str:
    return f"slot{slot}"


def _console(plan: LaunchPlan, sockets: Mapping[Path, int]) -> Iterator[str]:
    log = f"logfile={_escaped(plan.console_log)},logappend=on"
    yield from ("-chardev", f"{_socket('console', plan.console_socket, sockets)},{log}")
    yield from ("-serial", "chardev:console")


def _agent(paths: Iterable[Path], sockets: Mapping[Path, int]) -> Iterator[str]:
    yield from ("-device", "virtio-serial-pci,id=agents")
    for index, path in enumerate(paths):
        yield from ("-chardev", _socket(f"agent{index}", path, sockets))
        # Port 0 is reserved for consoles.
        port = f"virtserialport,bus=agents.0,nr={index + 1},chardev=agent{index}"
        yield from ("-device", f"{port},name={AGENT_PORT_NAME}.{index}")


def _descriptors(index: int, disk: DiskPlan, descriptors: Sequence[int]) -> Iterator[str]:
    for descriptor in descriptors:
        owner = disk_device(index, disk)
        yield from ("-add-fd", f"fd={descriptor},set={index},opaque={owner}")


def fdset(number: int) -> str:
    """The file name of a set of descriptors."""
    return f"/dev/fdset/{number}"


def _disk(index: int, disk: DiskPlan, file_name: str) -> Iterator[str]:
    node = first_node(index, disk)
    yield from ("-blockdev", json.dumps(disk_node(node, disk, file_name)))
    yield from ("-device", _options(disk_hardware(index, disk, node)))


def first_node(index: int, disk: DiskPlan) -> str:
    """The name of a disk's first block node."""
    return f"disk{index}" if disk.slot is None else f"{device_name(disk.slot)}-first"


def disk_hardware(index: int, disk: DiskPlan, node: str) -> dict[str, object]:
    """A disk's device on a block node, for ``device_add``."""
    serial = {"serial": disk.serial} if disk.serial else {}
    named = {"driver": "virtio-blk-pci", "id": disk_device(index, disk), "drive": node}
    return {**named, **serial, **_place(disk.slot)}


def _place(slot: int | None) -> dict[str, object]:
    return {} if slot is None else {"bus": _port(slot)}


def _options(hardware: Mapping[str, object]) -> str:
    """A device's options, for the command line."""
    driver, *rest = (
        _escaped(str(value)) if name == "driver" else f"{name}={_escaped(str(value))}"
        for name, value in hardware.items()
    )
    return ",".join([driver, *rest])


def disk_node(name: str, disk: DiskPlan, file_name: str) -> dict[str, object]:
    """A block node of this name for a disk (docs/qemu-block-drivers)."""
    # Writes go through the host's page cache, and the guest's flushes reach the disk: flushed data
    # survives a crash of the host.
    file = {
        "driver": "file",
        "filename": file_name,
        "discard": "unmap",
        "read-only": disk.read_only,
    }
    return {
        "node-name": name,
        "driver": disk.format,
        "discard": "unmap",
        "read-only": disk.read_only,
        "file": file,
    }


def disk_device(index: int, disk: DiskPlan) -> str:
    """The name of a disk's device."""
    return f"vd{index}" if disk.slot is None else device_name(disk.slot)


def _nic(
    index: int, nic: Nic, name: str, taps: Mapping[str, int], links: Mapping[str, int]
) -> Iterator[str]:
    if nic.mac in links:
        # The netdev `stream` has the same frames, from QEMU 7.2 on.
        yield from ("-netdev", f"socket,id={netdev(index, nic)},fd={links[nic.mac]}")
    elif isinstance(nic, TapNic | NetworkNic):
        yield from ("-netdev", f"tap,id={netdev(index, nic)},fd={taps[nic.mac]}")
    else:
        forwards = "".join(f",hostfwd={_forward(forward)}" for forward in nic.forwards)
        yield from ("-netdev", f"user,id={netdev(index, nic)},hostname={_escaped(name)}{forwards}")
    yield from ("-device", _options(nic_hardware(index, nic)))


def netdev(index: int, nic: Nic) -> str:
    """The name of a network card's back end."""
    return f"net{index}" if nic.slot is None else f"{device_name(nic.slot)}-net"


def nic_hardware(index: int, nic: Nic) -> dict[str, object]:
    """A network card's device, for ``device_add``."""
    # Without a boot ROM: no machine of ours boots from the network by firmware.
    card: dict[str, object] = {
        "driver": "virtio-net-pci",
        "netdev": netdev(index, nic),
        "mac": nic.mac,
        "romfile": "",
    }
    named = {} if nic.slot is None else {"id": device_name(nic.slot)}
    return {**card, **named, **_place(nic.slot)}


def _forward(port: PortForward) -> str:
    return f"{port.protocol}:{port.host_address}:{port.host_port}-:{port.guest_port}"


def _share(index: int, share: SharePlan) -> Iterator[str]:
    # Files have the owners and modes that the guest gives them, as with virtiofsd; QEMU's filter of
    # system calls refuses setuid files. A user without root owns all files.
    model = "passthrough" if os.geteuid() == 0 else "none"
    access = ",readonly=on" if share.read_only else ""
    source = f"path={_escaped(share.source)},security_model={model}{access},multidevs=remap"
    yield from ("-fsdev", f"local,id=share{index},{source}")
    yield from ("-device", f"virtio-9p-pci,fsdev=share{index},mount_tag={_escaped(share.tag)}")


def _socket(name: str, path: Path, sockets: Mapping[Path, int]) -> str:
    place = f"fd={sockets[path]}" if path in sockets else f"path={_escaped(path)}"
    return f"socket,id={name},{place},server=on,wait=off"


def _escaped(value: str | Path) -> str:
    # In a list of options a comma is doubled.
    return str(value).replace(",", ",,")


def _flatten(parts: Iterable[Iterator[str]]) -> Iterator[str]:
    return (argument for part in parts for argument in part)
