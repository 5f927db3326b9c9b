"""What the manager asks of an engine and of a machine that runs, by ``native`` and ``qemu``.

An `Engine` turns a `LaunchPlan` into one detached process, and gives the `Instance` of it; what
later commands need to reach that is its `InstanceRecord`. The manager speaks to an instance alone.
An engine knows no store, no image names and no users.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from cerne.engine.plan import DiskPlan, LaunchPlan, Nic
    from cerne.engine.record import InstanceRecord
    from cerne.guest import GuestAgent
    from cerne.host.process import ProcessIdentity

ANSWER_TIMEOUT = 10.0
"""Seconds in which a machine's process must begin to answer; else it is taken to hang.

A busy host needs some of them: a guest that QEMU emulates can keep QEMU's own thread waiting."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do on this host beside what every engine can."""

    fork: bool
    """Fork a machine that runs. Where it does not, a machine is saved once, and others go on."""
    force_unplug: bool
    """Take out a device that the guest has not let go of."""
    firmware: bool
    """Boot by firmware an image that has no kernel of its own."""
    vsock: bool
    """Give programs of this host a way to sockets in the guest."""


class RunState(StrEnum):
    """What a machine's process does."""

    RUNNING = "running"
    """Its vCPUs run."""
    PAUSED = "paused"
    """Its vCPUs were stopped."""
    HELD = "held"
    """It waits for saved memory or for the word to go on, or has just been saved."""


@dataclass(frozen=True, slots=True)
class GuestMemoryUse:
    """What a guest says of its memory, in bytes; it may say anything."""

    given: int
    """What its balloon leaves it."""
    used: int | None
    """What it has in use and could not free at once; None where it does not say."""


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


class Instance(Protocol):
    """One machine that runs, or is paused: its process, and what leads to its guest.

    Whatever asks the process raises `NotAnsweringError` where that does not answer.
    """

    @property
    def record(self) -> InstanceRecord:
        """What `Engine.attach` needs to give this instance again."""

    @property
    def process(self) -> ProcessIdentity:
        """The machine's process."""

    def status(self) -> RunState:
        """What it does, which is asked for a few seconds at most.

        Raises:
            EngineError: it does not answer.
        """

    def pause(self) -> None:
        """Hold its vCPUs.

        Raises:
            EngineError: it does not answer, or refuses.
        """

    def resume(self) -> None:
        """Let its vCPUs run.

        Raises:
            EngineError: it does not answer, or refuses.
        """

    def power_button(self) -> None:
        """Press the guest's power button.

        Raises:
            EngineError: it does not answer.
        """

    def save(self, directory: Path, disks: tuple[DiskPlan, ...], *, resume: bool) -> None:
        """Save its memory and devices into an empty directory.

        Its disks are as the memory knows them: they are flushed, and from that moment on it
        writes to `disks`, one for each that it has, which are empty overlays of those (or the
        same, where it will not run on). Then it runs on, if it ran and `resume` says so. The
        directory is complete and on the disk when this returns.

        Raises:
            EngineError: it could not be saved; it runs on, on either disks.
            StorageError: the directory cannot hold it; it runs on.
            InputError: it has what cannot be saved.
        """

    def break_off_saving(self) -> None:
        """End a saving that a killed command has begun, so that it does not stop the machine.

        Raises:
            NotAnsweringError: it does not answer.
        """

    def fork(self, disks: tuple[DiskPlan, ...], children: Sequence[LaunchPlan]) -> list[Instance]:
        """Fork it; its children go on from where it is, each by its own plan.

        `disks` are for the machine itself, as in `save`; those of each child are in its plan.

        Raises:
            EngineError: it could not be forked; it runs on, and no child does.
            InputError: it has what cannot be forked, or its engine cannot (`Capabilities.fork`).
        """

    def plug(self, device: DiskPlan | Nic) -> None:
        """Plug a disk or a network card into its slot.

        Its guest is told; what it makes of it is its own affair.

        Raises:
            ConflictError: the slot is taken, or another process uses the disk.
            EngineError, HostError: it could not be plugged in; nothing of it is left.
        """

    def unplug(self, slot: int, timeout: float, *, force: bool) -> None:
        """Take out what is in a slot, once the guest has let go of it; or at once with `force`.

        Nothing happens where the slot is empty.

        Raises:
            GuestTimeoutError: the guest has not let go within `timeout` seconds; it is kept.
            GuestError: the guest refused; it is kept.
            InputError: its engine cannot force it (`Capabilities.force_unplug`).
        """

    def plugged(self) -> frozenset[int]:
        """The slots that have something in them."""

    def set_memory(self, size: int) -> None:
        """Ask its guest to make do with so many bytes of its memory, or to take as much again.

        It does so in its own time, and only as far as it can.

        Raises:
            StateError: it has no balloon.
            EngineError: it does not answer.
        """

    def set_cpu_weight(self, weight: int) -> None:
        """Give its process a share of CPU time beside others.

        Raises:
            HostError: the host does not let this user do so.
        """

    def stats(self, *, runs: bool) -> GuestMemoryUse | None:
        """What its guest says of its memory; None where it has no balloon.

        One that `runs` is asked, and given a second to answer; another would not.

        Raises:
            EngineError: it does not answer.
        """

    def agent(self) -> GuestAgent:
        """The agent in its guest, which is taken to be there."""

    def console(self) -> socket.socket:
        """A connection to its serial console, for one at a time.

        Raises:
            BusyError: another has the console.
        """

    def vsock(self) -> Vsock | None:
        """The way to its guest's sockets; None where it was started without."""

    def kill(self) -> None:
        """End its process at once; `wait` tells when it is gone."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until its process has ended, at most `timeout` seconds; whether it has."""


class Engine(Protocol):
    """Starts machines of one kind."""

    @property
    def name(self) -> str:
        """``native`` or ``qemu``."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can do on this host; nothing is tried to find out."""

    @property
    def share_type(self) -> ShareType:
        """What its machines' shared directories are."""

    def require(self, plan: LaunchPlan) -> None:
        """Refuse, before anything is created, what this engine cannot run on this host.

        Raises:
            HostError: a program or a device is missing; the hint names the command that mends it.
            InputError: the plan asks for what this engine does not have.
        """

    def start(self, plan: LaunchPlan) -> Instance:
        """Start the machine's process, detached; return when it answers and its vCPUs run.

        Raises:
            EngineError: the process ended or did not answer; nothing of it is left running.
        """

    def attach(self, record: InstanceRecord) -> Instance:
        """A machine that runs, which another command may have started. Nothing is asked of it."""

    def describe(self, plan: LaunchPlan, process: ProcessIdentity) -> InstanceRecord:
        """The record of a machine that runs, of which none was kept, from how it was started."""

    def fingerprint(self) -> str:
        """What a saved machine depends on beside its plan: another value cannot restore it."""

    def restores(self, fingerprint: str) -> bool:
        """Whether a machine that was saved with this fingerprint can go on here.

        The engine's own fingerprint always can; one of an older Cerne may.
        """

    def ending(self, logs: Path) -> Ending:
        """Say how the machine's process, which is gone, ended: read from its `LaunchPlan.logs`."""
