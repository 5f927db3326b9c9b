"""From a specification and an image to a `LaunchPlan`: every name becomes a path or a number."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cerne.engine.base import (
    DiskPlan,
    FirmwareBoot,
    KernelBoot,
    LaunchPlan,
    SharePlan,
    UserNic,
)
from cerne.network.mac import mac_address

if TYPE_CHECKING:
    from cerne.images import Image
    from cerne.manager.home import Home
    from cerne.manager.spec import MachineSpec
    from cerne.manager.store import Record


def launch_plan(home: Home, record: Record, spec: MachineSpec, image: Image) -> LaunchPlan:
    """All that an engine needs to start this machine."""
    shares = tuple(
        SharePlan(share_tag(index), mount.source, mount.read_only)
        for index, mount in enumerate(spec.mounts)
    )
    disks = (DiskPlan(home.root_disk(record.id), "qcow2", serial="root"),) if image.disk else ()
    return LaunchPlan(
        machine_id=record.id,
        name=record.name,
        cpus=record.cpus,
        memory=record.memory,
        boot=_boot(image),
        disks=disks,
        nics=(UserNic(mac_address(record.id, 0), spec.ports),),
        shares=shares,
        balloon=spec.balloon,
        runtime=home.machine_runtime(record.id),
        logs=home.machine_directory(record.id),
    )


def share_tag(index: int) -> str:
    """The tag by which a guest finds the shared directory of this number."""
    return f"share{index}"


def _boot(image: Image) -> KernelBoot | FirmwareBoot:
    if image.boot is None:
        return FirmwareBoot()
    return KernelBoot(image.boot.kernel, image.boot.initrd, image.boot.command_line)
