"""From a specification and an image to a `LaunchPlan`: every name becomes a path or a number.

The parts of a plan are imported where one is made, because `cerne ls` makes none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cerne.network.mac import mac_address
from cerne.spec.limits import ROOT_SERIAL
from cerne.spec.network import NetworkKind, parse_network
from cerne.units import GIB

if TYPE_CHECKING:
    from cerne.engine.plan import DiskPlan, FirmwareBoot, KernelBoot, LaunchPlan, NetworkNic, Nic
    from cerne.images import Image
    from cerne.manager.home import Home
    from cerne.manager.store import CardRow, NetworkRow, Record
    from cerne.spec.disk import Disk
    from cerne.spec.machine import MachineSpec
    from cerne.spec.nic import Nic as AskedNic


def launch_plan(
    home: Home,
    record: Record,
    spec: MachineSpec,
    image: Image,
    named: Mapping[int, NetworkNic],
) -> LaunchPlan:
    """All that an engine needs to start this machine; `named` are its cards on such networks."""
    from cerne.engine.plan import LaunchPlan, SharePlan

    shares = tuple(
        SharePlan(share_tag(index), mount.source, mount.read_only)
        for index, mount in enumerate(spec.mounts)
    )
    return LaunchPlan(
        machine_id=record.id,
        name=record.name,
        cpus=record.cpus,
        memory=record.memory,
        boot=_boot(image, record, spec),
        disks=disk_plans(home, record.id, spec, has_root=image.disk is not None),
        nics=nic_plans(record.id, spec, named),
        shares=shares,
        balloon=spec.balloon,
        headroom=0 if spec.resources.memory.hugepages else _headroom(),
        runtime=home.machine_runtime(record.id),
        logs=home.machine_directory(record.id),
        agent=image.agent,
        max_cpus=spec.max_cpus or 0,
        strict=spec.strict,
        resources=spec.resources,
    )


def _headroom() -> int:
    """Bytes that a machine may grow by while it runs: all that its host has for machines."""
    from cerne.host.supply import supplied_memory

    return -(-supplied_memory() // GIB) * GIB


def disk_plans(
    home: Home, machine_id: str, spec: MachineSpec, *, has_root: bool
) -> tuple[DiskPlan, ...]:
    """All disks of a machine, as an engine has them."""
    from cerne.engine.plan import DiskPlan

    root = DiskPlan(home.root_disk(machine_id), "qcow2", serial=ROOT_SERIAL)
    others = (disk_plan(home, machine_id, disk) for disk in spec.data_disks)
    return (root, *others) if has_root else tuple(others)


def nic_plans(
    machine_id: str, spec: MachineSpec, named: Mapping[int, NetworkNic]
) -> tuple[Nic, ...]:
    """All network cards of a machine, as an engine has them.

    `named` are the cards on networks with names, by their numbers, of a machine in the store.
    """
    return tuple(named.get(nic.number) or nic_plan(machine_id, nic) for nic in spec.nics)


def network_nic(nic: AskedNic, card: CardRow, network: NetworkRow) -> NetworkNic:
    """A card on a network with a name, as an engine has it, before its tap is open."""
    from ipaddress import IPv4Network

    from cerne.engine.plan import NetworkNic

    if card.ipv4 is None or network.ipv4 is None:
        return NetworkNic(card.mac, network.name, nic.slot)
    return NetworkNic(
        card.mac,
        network.name,
        nic.slot,
        address=card.ipv4,
        gateway=str(network.gateway4),
        mask=str(IPv4Network(network.ipv4).netmask),
    )


def disk_plan(home: Home, machine_id: str, disk: Disk) -> DiskPlan:
    """A disk beside the root disk, as an engine has it."""
    from cerne.engine.plan import DiskPlan

    path = disk.path or home.disk(machine_id, disk.serial)
    return DiskPlan(path, disk.read_as, disk.read_only, disk.serial, disk.slot, not disk.own)


def nic_plan(machine_id: str, nic: AskedNic) -> Nic:
    """A network card, as an engine has it."""
    from cerne.engine.plan import NetworkNic, TapNic, UserNic

    network = parse_network(nic.network)
    mac = nic.mac or mac_address(machine_id, nic.number)
    if network.kind is NetworkKind.NAMED:
        return NetworkNic(mac, network.name, nic.slot)
    if network.kind is NetworkKind.TAP:
        return TapNic(mac, network.interface, nic.slot)
    return UserNic(mac, nic.ports, nic.slot, nic.host_access)


def wanted_engine(spec: MachineSpec, image: Image) -> str:
    """The engine to ask for; firmware, where an image has no kernel of its own, is QEMU's alone."""
    return "qemu" if spec.engine == "auto" and image.boot is None else spec.engine


def share_tag(index: int) -> str:
    """The tag by which a guest finds the shared directory of this number."""
    return f"share{index}"


def _boot(image: Image, record: Record, spec: MachineSpec) -> KernelBoot | FirmwareBoot:
    from cerne.engine.plan import FirmwareBoot, KernelBoot

    if image.boot is None:
        return FirmwareBoot()
    told = image.boot.command_line
    if image.has_systemd:
        from cerne.manager.machines.machine_id import has_own_identity, machine_id

        # Services have the machine's own name and id from the first one on
        # (kernel-command-line(7)).
        told += f" systemd.hostname={record.name}"
        if has_own_identity(spec, has_disk=image.disk is not None):
            told += f" systemd.machine_id={machine_id(record.id)}"
    return KernelBoot(image.boot.kernel, image.boot.initrd, told)
