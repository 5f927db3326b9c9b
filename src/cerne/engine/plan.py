"""What an engine is told to start: every name has become a path, a size or a number."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cerne.network.user import kernel_parameter, name_parameter
from cerne.spec.limits import SLOTS as SLOTS
from cerne.spec.ports import Protocols as Protocols
from cerne.spec.ports import PublishedPort

PortForward = PublishedPort
"""A port of the host that leads to a port of the guest."""

AGENT_PORTS = 8
"""How many agent ports a machine has: so many sessions (exec, cp, shell) can run side by side."""


@dataclass(frozen=True, slots=True)
class KernelBoot:
    """Boot a kernel directly, with no firmware."""

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
    """``raw`` or ``qcow2``, or another one of QEMU's where the engine has it served by QEMU."""
    read_only: bool = False
    serial: str = ""
    slot: int | None = None
    """Which of the `SLOTS` it is in, so that it can be taken out; None for one that stays."""
    shared: bool = False
    """Whether the file is not the machine's alone: others must be kept from writing to it, and
    where it is written, from reading it too."""
    outside: bool = False
    """Whether a process of its own is to serve it, where the engine could serve it itself."""


@dataclass(frozen=True, slots=True)
class UserNic:
    """A network card behind user-mode networking: outbound NAT, published ports inbound."""

    mac: str
    forwards: tuple[PortForward, ...] = ()
    slot: int | None = None
    """As a disk's."""


@dataclass(frozen=True, slots=True)
class TapNic:
    """A network card on a tap of the host, which is there already."""

    mac: str
    interface: str
    slot: int | None = None
    """As a disk's."""


Nic = UserNic | TapNic


@dataclass(frozen=True, slots=True)
class SharePlan:
    """A directory of the host that the guest may mount by its tag."""

    tag: str
    source: Path
    read_only: bool


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
    """A directory of this machine alone, on the runtime file system: sockets and pid."""
    logs: Path
    """A directory of this machine alone that lasts: ``console.log``, ``engine.log``."""
    balloon: int | None = None
    """Bytes of its memory that the guest may have; None for all, or for what it had when saved."""
    saved: Path | None = None
    """A directory that `Instance.save` wrote: the machine goes on from there and does not boot."""
    memory_file: Path | None = None
    """Keep the guest's memory in this file of the directory that `Instance.save` will be given, so
    that saving need not copy it; for a machine that is saved once and never runs again."""
    agent: bool = False
    """Whether its guest has the agent."""

    @property
    def slots(self) -> dict[int, DiskPlan | Nic]:
        """What can be taken out, by its slot."""
        return slots((*self.disks, *self.nics))

    @property
    def forwards(self) -> tuple[PortForward, ...]:
        """Every port of the host that leads to it."""
        return tuple(
            forward for nic in self.nics if isinstance(nic, UserNic) for forward in nic.forwards
        )

    @property
    def taps(self) -> tuple[TapNic, ...]:
        """Its cards that are on taps."""
        return tuple(nic for nic in self.nics if isinstance(nic, TapNic))

    @property
    def network_parameter(self) -> str:
        """What the guest's kernel is told of its name, and of its network where we know it."""
        known = any(isinstance(nic, UserNic) for nic in self.nics[:1])
        return kernel_parameter(self.name) if known else name_parameter(self.name)

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
        """Holds the Unix sockets that lead into the guest and out of it, where it has such."""
        return self.runtime / "vsock"

    @property
    def control_group(self) -> Path:
        """Where it is noted what control group its process has (`cerne.host.cgroup`)."""
        return self.runtime / "group"

    @property
    def console_log(self) -> Path:
        return self.logs / "console.log"

    @property
    def engine_log(self) -> Path:
        return self.logs / "engine.log"


def slots(devices: Iterable[DiskPlan | Nic]) -> dict[int, DiskPlan | Nic]:
    """Those of the devices that can be taken out, by their slots."""
    return {device.slot: device for device in devices if device.slot is not None}
