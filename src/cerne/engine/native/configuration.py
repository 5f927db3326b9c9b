"""The configuration of a native machine's process: a plan, with all of its files opened."""

from __future__ import annotations

import os

from cerne.engine.cards import connected_card
from cerne.engine.native.backends import (
    disk_backend,
    is_served_outside,
    keeps_memory,
    share_backend,
)
from cerne.engine.opened import Opened
from cerne.engine.plan import (
    PLUGGED_MEMORY,
    DiskPlan,
    KernelBoot,
    LaunchPlan,
    NetworkNic,
    Nic,
    TapNic,
)
from cerne.engine.record import InstanceRecord
from cerne.engine.saved import MEMORY_FILE, STATE_FILE
from cerne.engine.vsock import GUEST_SOCKET
from cerne.host import user_ids
from cerne.host.members import MACHINE
from cerne.host.process import ProcessIdentity
from cerne.network.tap import mtu_of
from cerne.storage.overlay import chain
from cerne.vmm.config import (
    BootConfig,
    DiskConfig,
    FileConfig,
    LinkKind,
    NicConfig,
    SavedConfig,
    ShareConfig,
    VmmConfig,
    VsockConfig,
)

CONFIG_FILE = "vmm.json"
"""In `LaunchPlan.runtime`."""
ENDING_FILE = "ending.json"
"""In `LaunchPlan.logs`."""


def configuration(plan: LaunchPlan, opened: Opened, *, emulated: bool) -> VmmConfig:
    """The configuration of a process that boots; `confined` adds its user."""
    return VmmConfig(
        name=plan.name,
        identity=str(plan.runtime / CONFIG_FILE),
        cpus=plan.cpus,
        memory=plan.memory,
        boot=_boot(plan, opened),
        qmp=opened.listening(plan.qmp_socket),
        console=opened.listening(plan.console_socket),
        console_log=opened.log(plan.console_log),
        agents=tuple(opened.listening(path) for path in plan.agent_sockets),
        ending=opened.new(plan.logs / ENDING_FILE),
        disks=tuple(_served_disk(plan, index, opened) for index in range(len(plan.disks))),
        shares=tuple(
            ShareConfig(share.tag, share_backend(plan, index, opened))
            for index, share in enumerate(plan.shares)
        ),
        vsock=_vsock(plan, opened),
        nics=tuple(nic_configuration(plan, nic, opened) for nic in plan.nics),
        balloon=plan.balloon,
        # Backends share its memory as it is at the start, and hugepages are set aside for that.
        headroom=0 if keeps_memory(plan) else plan.headroom,
        hugepages=bool(plan.resources.memory.hugepages),
        merge=bool(plan.resources.memory.merge),
        owner=os.geteuid(),
        max_cpus=plan.max_cpus,
        strict=plan.strict,
        emulated=emulated,
    )


def confined(config: VmmConfig, opened: Opened) -> VmmConfig:
    """A configuration with a user id of its own, where this host has them."""
    lease = user_ids.take()
    if lease is None:
        return config
    return config._replace(user=lease.user, lease=opened.take(lease.descriptor))


def child_configuration(
    plan: LaunchPlan, opened: Opened, *, emulated: bool, parent: ProcessIdentity | None = None
) -> VmmConfig:
    """The configuration of a forked process, which has its own log.

    It registers itself; if its `parent` is a machine, an attacker may do so.
    """
    user = None if parent is None else parent.user()
    return configuration(plan, opened, emulated=emulated)._replace(
        engine_log=opened.log(plan.engine_log),
        registration=opened.registration(
            plan.runtime, MACHINE, confined=parent is not None, user=user
        ),
        doors=opened.doors(plan.runtime),
    )


def saved_configuration(plan: LaunchPlan, opened: Opened) -> SavedConfig | None:
    """The saved machine from which it starts, if any."""
    if plan.saved is None:
        return None
    return SavedConfig(
        state=opened.existing(plan.saved / STATE_FILE),
        memory=opened.existing(plan.saved / MEMORY_FILE),
    )


def _boot(plan: LaunchPlan, opened: Opened) -> BootConfig:
    boot = plan.boot
    assert isinstance(boot, KernelBoot)
    return BootConfig(
        kernel=opened.existing(boot.kernel),
        initrd=None if boot.initrd is None else opened.existing(boot.initrd),
        command_line=f"{boot.command_line} panic=-1 reboot=k {PLUGGED_MEMORY}"
        f" {plan.network_parameter}",
    )


def _served_disk(plan: LaunchPlan, index: int, opened: Opened) -> DiskConfig:
    """A disk, which a backend serves if the VMM does not read its format."""
    disk = plan.disks[index]
    if not is_served_outside(disk):
        return disk_configuration(disk, opened)
    return DiskConfig((), disk.serial, disk.read_only, backend=disk_backend(plan, index, opened))


def disk_configuration(disk: DiskPlan, opened: Opened) -> DiskConfig:
    """A disk that the VMM reads itself."""
    # Only the top is written; the files under it must not be the top of another machine.
    (top, form), *under = chain(disk.path, disk.format)
    writable = not disk.read_only
    opens = opened.locked if disk.shared else opened.existing
    files = [FileConfig(opens(top, writable=writable), form)]
    files += [FileConfig(opened.existing(path), form) for path, form in under]
    return DiskConfig(tuple(files), disk.serial, disk.read_only, disk.slot)


def nic_configuration(machine: LaunchPlan | InstanceRecord, nic: Nic, opened: Opened) -> NicConfig:
    """A network card on a tap, or on a socket to passt."""
    if isinstance(nic, TapNic | NetworkNic):
        tap = opened.tap(nic)
        # Nothing here limits what the host's kernel moves.
        vhost = None if _limits_network(machine) else opened.vhost_net()
        mtu = nic.mtu if isinstance(nic, NetworkNic) else mtu_of(nic.interface)
        return NicConfig(nic.mac, tap, LinkKind.TAP, mtu, vhost, nic.slot)
    return NicConfig(nic.mac, connected_card(machine, nic, opened), slot=nic.slot)


def _limits_network(machine: LaunchPlan | InstanceRecord) -> bool:
    """Whether network cards have a limit; the process knows that of a machine that runs."""
    if not isinstance(machine, LaunchPlan):
        return False
    network = machine.resources.network
    return network.receive is not None or network.send is not None


def _vsock(plan: LaunchPlan, opened: Opened) -> VsockConfig:
    return VsockConfig(
        directory=opened.searched(plan.vsock_directory),
        listener=opened.listening(plan.vsock_directory / GUEST_SOCKET),
    )
