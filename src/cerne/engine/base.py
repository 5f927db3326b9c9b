"""What the manager asks of an engine: one interface, served by ``native`` and by ``qemu``.

An engine turns a `LaunchPlan`, in which every name has become a path, a size or a number, into one
detached process, and says which. From then on the process is spoken to in QMP, the same for both
engines (`cerne.engine.qmp`). An engine knows no store, no image names and no users.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cerne.host.process import ProcessIdentity
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
    """A directory that `Engine.save` wrote: the machine goes on from there and does not boot."""
    memory_file: Path | None = None
    """Keep the guest's memory in this file of the directory that `Engine.save` will be given, so
    that saving need not copy it; for a machine that is saved once and never runs again."""

    @property
    def slots(self) -> dict[int, DiskPlan | Nic]:
        """What can be taken out, by its slot."""
        devices: list[DiskPlan | Nic] = [*self.disks, *self.nics]
        return {device.slot: device for device in devices if device.slot is not None}

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
    def console_log(self) -> Path:
        return self.logs / "console.log"

    @property
    def engine_log(self) -> Path:
        return self.logs / "engine.log"


@dataclass(frozen=True, slots=True)
class Ending:
    """How a machine's process ended, as far as its engine can tell afterwards."""

    orderly: bool
    """True for a shutdown or a reset that was asked for, by the guest or by the host."""
    reason: str
    """One line for people, such as ``the guest shut down`` or ``the guest's kernel panicked``."""


class Vsock(Protocol):
    """The way to the sockets of one machine's guest: streams by virtio, with no network."""

    @property
    def place(self) -> str:
        """Where they are, for people and for other programs."""

    def connect(self, port: int, timeout: float) -> socket.socket:
        """A connection to a port that a program in the guest listens at.

        Raises:
            InputError: there is no such port.
            GuestError: none does.
            GuestTimeoutError: the guest does not answer.
            EngineError: the machine's process does not.
        """

    def listen(self, port: int) -> socket.socket:
        """A listening socket, to which the guest's connections to this port of its host come.

        Raises:
            InputError: there is no such port.
            ConflictError: another program listens there.
            EngineError: it cannot be had.
        """


@dataclass(frozen=True, slots=True)
class ShareType:
    """How a guest mounts a shared directory by its tag."""

    file_system: str
    """As mount(8) names it."""
    options: str = ""


class Engine(Protocol):
    """Starts machines of one kind."""

    @property
    def name(self) -> str:
        """``native`` or ``qemu``."""

    @property
    def share_type(self) -> ShareType:
        """What its machines' shared directories are."""

    def require(self, plan: LaunchPlan) -> None:
        """Refuse, before anything is created, what this engine cannot run on this host.

        Raises:
            HostError: a program or a device is missing; the hint names the command that mends it.
            InputError: the plan asks for what this engine does not have.
        """

    def start(self, plan: LaunchPlan) -> ProcessIdentity:
        """Start the machine's process, detached; return when its QMP answers and vCPUs run.

        Raises:
            EngineError: the process ended or did not answer; nothing of it is left running.
        """

    def fingerprint(self) -> str:
        """What a saved machine depends on beside its plan: another value cannot restore it."""

    def restores(self, fingerprint: str) -> bool:
        """Whether a machine that was saved with this fingerprint can go on here.

        The engine's own fingerprint always can; one of an older Cerne may.
        """

    def save(
        self, plan: LaunchPlan, directory: Path, disks: tuple[DiskPlan, ...], *, resume: bool
    ) -> None:
        """Save a machine that runs, or is paused: memory and devices, into an empty directory.

        Its disks are as the memory knows them: they are flushed, and from that moment on it
        writes to `disks`, one for each of the plan's, which are empty overlays of those (or the
        same, where it will not run on). Then it runs on, if it ran and `resume` says so. The
        directory is complete and on the disk when this returns.

        Raises:
            EngineError: it could not be saved; it runs on, on either disks.
            StorageError: the directory cannot hold it; it runs on.
        """

    def fork(
        self, plan: LaunchPlan, disks: tuple[DiskPlan, ...], children: Sequence[LaunchPlan]
    ) -> list[ProcessIdentity]:
        """Fork a running machine; its children go on from where it is, each by its own plan.

        `disks` are for the machine itself, as in `save`; those of each child are in its plan.

        Raises:
            EngineError: it could not be forked; it runs on, and no child does.
            InputError: its kind of machine cannot be forked, only saved and restored.
        """

    def vsock(self, plan: LaunchPlan) -> Vsock | None:
        """The way to the guest's sockets of a machine that runs; None where this host has none."""

    def plug(self, plan: LaunchPlan, device: DiskPlan | Nic) -> None:
        """Plug a disk or a network card into its slot of a machine that runs, or is paused.

        Its guest is told; what it makes of it is its own affair.

        Raises:
            ConflictError: the slot is taken, or another process uses the disk.
            EngineError, HostError: it could not be plugged in; nothing of it is left.
        """

    def unplug(self, plan: LaunchPlan, slot: int, timeout: float, *, force: bool) -> None:
        """Take out what is in a slot, once the guest has let go of it; or at once with `force`.

        Nothing happens where the slot is empty.

        Raises:
            GuestTimeoutError: the guest has not let go within `timeout` seconds; it is kept.
            GuestError: the guest refused; it is kept.
            InputError: this engine cannot force it.
        """

    def plugged(self, plan: LaunchPlan) -> frozenset[int]:
        """The slots of a running machine that have something in them."""

    def ending(self, logs: Path) -> Ending:
        """Say how the machine's process, which is gone, ended: read from its `LaunchPlan.logs`."""
