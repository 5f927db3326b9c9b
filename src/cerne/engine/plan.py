"""The plan of a machine's start, in which every name is resolved to a path, a size or a number."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cerne.host.cell_note import NOTE
from cerne.network.user import kernel_parameter, name_parameter
from cerne.spec.limits import SLOTS as SLOTS
from cerne.spec.ports import Protocols as Protocols
from cerne.spec.ports import PublishedPort

if TYPE_CHECKING:
    from cerne.spec.resources import Resources

PortForward = PublishedPort
"""A port of the host that leads to a port of the guest."""

PLUGGED_MEMORY = "memhp_default_state=online memory_hotplug.online_policy=auto-movable"
"""The kernel's parameters with which plugged memory is used at once, and can be given back."""

AGENT_PORTS = 8
"""The number of agent ports: so many sessions (exec, cp, shell) can run at the same time."""


@dataclass(frozen=True, slots=True)
class KernelBoot:
    """Boot a kernel directly, without firmware."""

    kernel: Path
    """A bzImage or an ELF vmlinux."""
    initrd: Path | None
    command_line: str


@dataclass(frozen=True, slots=True)
class FirmwareBoot:
    """Boot from the first disk by the machine's firmware."""


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """A disk of the machine; the first is the root disk (vda)."""

    path: Path
    format: str
    """``raw`` or ``qcow2``, or another format of QEMU if QEMU serves the disk."""
    read_only: bool = False
    serial: str = ""
    slot: int | None = None
    """Its slot of the `SLOTS`, for a removable disk; None for a permanent one."""
    shared: bool = False
    """Whether others use the file too: they must not write to it, nor read it if it is written."""
    outside: bool = False
    """Whether a separate process should serve it, even if the engine could serve it itself."""


@dataclass(frozen=True, slots=True)
class UserNic:
    """A network card behind user-mode networking: outbound NAT, published ports inbound."""

    mac: str
    forwards: tuple[PortForward, ...] = ()
    slot: int | None = None
    """The slot, as of a disk."""
    host_access: tuple[int, ...] = ()
    """Ports of the host's loopback that the guest reaches at its gateway."""


@dataclass(frozen=True, slots=True)
class TapNic:
    """A network card on an existing tap of the host."""

    mac: str
    interface: str
    slot: int | None = None
    """The slot, as of a disk."""


@dataclass(frozen=True, slots=True)
class NetworkNic:
    """A network card on a network with a name, by a tap that is opened before the start."""

    mac: str
    network: str
    slot: int | None = None
    """The slot, as of a disk."""
    tap: int | None = None
    """The descriptor of its open tap, with headers; None before the network has made it."""
    mtu: int = 1500
    address: str = ""
    """Its IPv4 address; empty if the guest gets it in another way."""
    gateway: str = ""
    """The network's own IPv4 address, which is the gateway and the name server."""
    mask: str = ""


Nic = UserNic | TapNic | NetworkNic


@dataclass(frozen=True, slots=True)
class SharePlan:
    """A directory of the host that the guest may mount by its tag."""

    tag: str
    source: Path
    read_only: bool


def _no_resources() -> Resources:
    # Imported here, because some processes of a machine need plans and no models.
    from cerne.spec.resources import Resources

    return Resources()


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """All that an engine needs to start one machine."""

    machine_id: str
    name: str
    cpus: int
    memory: int
    """Bytes of guest memory."""
    boot: KernelBoot | FirmwareBoot
    disks: tuple[DiskPlan, ...]
    nics: tuple[Nic, ...]
    shares: tuple[SharePlan, ...]
    runtime: Path
    """A directory of only this machine, on the runtime file system: sockets and pid."""
    logs: Path
    """A permanent directory of only this machine: ``console.log``, ``engine.log``."""
    balloon: int | None = None
    """Bytes of memory that the guest may use; None for all, or for the saved value."""
    headroom: int = 0
    """Bytes that may be plugged in addition while it runs; they cost only address space."""
    saved: Path | None = None
    """A directory that `Instance.save` wrote: the machine starts from it and does not boot."""
    memory_file: Path | None = None
    """Keep the guest's memory in this file of the later directory of `Instance.save`: no copy."""
    agent: bool = False
    """Whether its guest has the agent."""
    max_cpus: int = 0
    """Virtual CPUs to which it can grow while it runs; 0 for no more than it has."""
    strict: bool = False
    """Whether it shares neither a core's threads nor memory with other machines."""
    resources: Resources = field(default_factory=_no_resources)
    """Its guarantees, limits and weights."""

    @property
    def most_cpus(self) -> int:
        """The virtual CPUs for which its guest's kernel has room."""
        return max(self.cpus, self.max_cpus)

    @property
    def slots(self) -> dict[int, DiskPlan | Nic]:
        """The removable devices by their slots."""
        return slots((*self.disks, *self.nics))

    @property
    def forwards(self) -> tuple[PortForward, ...]:
        """All published ports."""
        return tuple(
            forward for nic in self.nics if isinstance(nic, UserNic) for forward in nic.forwards
        )

    @property
    def taps(self) -> tuple[TapNic, ...]:
        """Its cards on taps of the host."""
        return tuple(nic for nic in self.nics if isinstance(nic, TapNic))

    @property
    def network_parameter(self) -> str:
        """The kernel's parameter with the guest's name, and its network if Cerne knows it."""
        for nic in self.nics[:1]:
            if isinstance(nic, UserNic):
                return kernel_parameter(self.name)
            if isinstance(nic, NetworkNic) and nic.address:
                return (
                    f"ip={nic.address}::{nic.gateway}:{nic.mask}:{self.name}:eth0:off:{nic.gateway}"
                )
        return name_parameter(self.name)

    @property
    def qmp_socket(self) -> Path:
        return self.runtime / "qmp.sock"

    @property
    def console_socket(self) -> Path:
        return self.runtime / "console.sock"

    @property
    def agent_sockets(self) -> tuple[Path, ...]:
        return tuple(self.runtime / f"agent{i}.sock" for i in range(AGENT_PORTS))

    @property
    def vsock_directory(self) -> Path:
        """The directory of the Unix sockets into the guest and out of it, if it has them."""
        return self.runtime / "vsock"

    @property
    def control_group(self) -> Path:
        """The note about the control groups of its processes (`cerne.host.cell`)."""
        return self.runtime / NOTE

    @property
    def console_log(self) -> Path:
        return self.logs / "console.log"

    @property
    def engine_log(self) -> Path:
        return self.logs / "engine.log"


def slots(devices: Iterable[DiskPlan | Nic]) -> dict[int, DiskPlan | Nic]:
    """The removable devices among these, by their slots."""
    return {device.slot: device for device in devices if device.slot is not None}
