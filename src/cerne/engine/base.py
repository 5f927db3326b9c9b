"""The interface of an engine and of a running machine, which ``native`` and ``qemu`` implement.

An `Engine` turns a `LaunchPlan` into one detached process, and returns its `Instance`; later
commands reach it by its `InstanceRecord`. The manager uses only the instance. An engine knows no
store, no image names and no users.
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
    from cerne.spec.resources import Resources

ANSWER_TIMEOUT = 10.0
"""Seconds within which a machine's process must answer, before it counts as hanging.

A busy host needs some of them: a guest that QEMU emulates can delay QEMU's own thread."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The optional features of an engine on this host."""

    fork: bool
    """Fork a running machine. Without it, the machine is saved once, and others start from that."""
    force_unplug: bool
    """Remove a device that the guest has not released."""
    firmware: bool
    """Boot by firmware an image without a kernel."""
    vsock: bool
    """Connect programs of this host to sockets in the guest."""
    network_rate: bool
    """Limit the rate of network cards."""


class RunState(StrEnum):
    """The run state of a machine's process."""

    RUNNING = "running"
    """Its vCPUs run."""
    PAUSED = "paused"
    """Its vCPUs were stopped."""
    HELD = "held"
    """It waits for saved memory or for its start, or has just been saved."""


@dataclass(frozen=True, slots=True)
class GuestMemoryUse:
    """A guest's report of its memory, in bytes, which is not trustworthy."""

    given: int
    """The memory without its balloon."""
    used: int | None
    """The used memory that it could not free at once; None if it does not report that."""


@dataclass(frozen=True, slots=True)
class Activity:
    """What a machine's devices and vCPUs have done since its process was started.

    A value that its engine does not count is None.
    """

    disk_read: int | None = None
    """Bytes that the guest read from its disks."""
    disk_written: int | None = None
    disk_reads: int | None = None
    """Read requests that were done."""
    disk_writes: int | None = None
    received: int | None = None
    """Bytes of the frames that the guest received on all network cards."""
    sent: int | None = None
    exits: int | None = None
    """How often its vCPUs left the guest."""
    vcpu_threads: tuple[int, ...] = ()
    """The threads of its process that run its vCPUs."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a machine's process ended, as far as its engine knows afterwards."""

    orderly: bool
    """True for a shutdown or a reset at the request of the guest or the host."""
    reason: str
    """One line for people, such as ``the guest shut down`` or ``the guest's kernel panicked``."""


class Vsock(Protocol):
    """Connects to the sockets of one machine's guest: streams by virtio, without a network."""

    @property
    def place(self) -> str:
        """Their address, for people and for other programs."""

    def connect(self, port: int, timeout: float) -> socket.socket:
        """Connect to a port at which a program in the guest listens.

        Raises:
            InputError: there is no such port.
            GuestError: no program listens there.
            GuestTimeoutError: the guest does not answer.
            EngineError: the machine's process does not answer.
        """

    def listen(self, port: int) -> socket.socket:
        """Listen for the guest's connections to this port of its host.

        Raises:
            InputError: there is no such port.
            ConflictError: another program listens there.
            EngineError: making the socket failed.
        """


@dataclass(frozen=True, slots=True)
class ShareType:
    """How a guest mounts a shared directory by its tag."""

    file_system: str
    """The name for mount(8)."""
    options: str = ""


class Instance(Protocol):
    """One machine that runs, or is paused: its process, and the connections to its guest.

    Each method that asks the process raises `NotAnsweringError` if it does not answer.
    """

    @property
    def record(self) -> InstanceRecord:
        """The record from which `Engine.attach` makes this instance again."""

    @property
    def process(self) -> ProcessIdentity:
        """The machine's process."""

    def status(self) -> RunState:
        """Its run state; asks the process for a few seconds at most.

        Raises:
            EngineError: it does not answer.
        """

    def pause(self) -> None:
        """Pause its vCPUs.

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

        Its disks match the memory: they are flushed, and from that moment on it writes to `disks`,
        one for each of its disks, which are empty overlays of those (or the same, if it will not
        run again). Then it continues, if it ran and `resume` is true. The directory is complete and
        on the disk when this returns.

        Raises:
            EngineError: saving failed; it continues, on the old or the new disks.
            StorageError: the directory has no room for it; it continues.
            InputError: it has a device that its engine does not save.
        """

    def break_off_saving(self) -> None:
        """End the saving of a killed command, so that it does not stop the machine.

        Raises:
            NotAnsweringError: it does not answer.
        """

    def fork(self, disks: tuple[DiskPlan, ...], children: Sequence[LaunchPlan]) -> list[Instance]:
        """Fork it; each child continues from its present state, with its own plan.

        `disks` are for the machine itself, as in `save`; the disks of each child are in its plan.

        Raises:
            EngineError: the fork failed; it continues, and there is no child.
            InputError: it has a device that does not fork, or its engine does not fork.
        """

    def plug(self, device: DiskPlan | Nic) -> None:
        """Plug a disk or a network card into its slot.

        Its guest gets notice of it.

        Raises:
            ConflictError: the slot is taken, or another process uses the disk.
            EngineError, HostError: plugging it in failed; nothing of it is left.
        """

    def unplug(self, slot: int, timeout: float, *, force: bool) -> None:
        """Remove the device in a slot after the guest has released it; or at once with `force`.

        Does nothing if the slot is empty.

        Raises:
            GuestTimeoutError: the guest has not released it within `timeout` seconds; it stays.
            GuestError: the guest refused; it stays.
            InputError: its engine does not support `force` (`Capabilities.force_unplug`).
        """

    def plugged(self) -> frozenset[int]:
        """The slots that are not empty."""

    def set_memory(self, size: int) -> None:
        """Ask its guest to use only so many bytes of its memory.

        The guest does so after a while, and only as far as it can.

        Raises:
            StateError: it has no balloon.
            EngineError: it does not answer.
        """

    def resize_memory(self, size: int) -> int:
        """Have its guest plug or unplug memory until the machine has `size` bytes.

        Returns what it has when its guest is done, or has changed nothing for a while. If that is
        less, its guest may continue; if that is more, its guest keeps it.

        Raises:
            InputError, CapacityError: it does not have so much or so little while it runs.
            StateError: it has no device for it.
            GuestError: its guest does nothing, as it has no driver or no free memory.
            EngineError: it does not answer, or refuses.
        """

    def memory(self) -> int:
        """Bytes of memory that its guest has or should have.

        Raises:
            EngineError: it does not answer.
        """

    def cpus(self) -> int:
        """How many virtual CPUs it has.

        Raises:
            EngineError: it does not answer.
        """

    def add_cpus(self, count: int) -> None:
        """Plug in virtual CPUs until it has so many, at most `LaunchPlan.most_cpus`.

        The guest gets notice of them, and uses them when it has brought them online.

        Raises:
            EngineError: plugging one in failed; it keeps those before.
        """

    def set_resources(self, resources: Resources) -> None:
        """Give it these guarantees, limits and weights in place of its former ones.

        Raises:
            HostError: the host does not allow it to this user; it has its former ones.
            EngineError: it does not answer.
        """

    def stats(self, *, runs: bool) -> GuestMemoryUse | None:
        """Its guest's report of its memory; None if it has no balloon.

        If it `runs`, the guest is asked and has a second to answer; a paused guest cannot answer.

        Raises:
            EngineError: it does not answer.
        """

    def activity(self) -> Activity:
        """What its devices and vCPUs have done.

        Raises:
            EngineError: it does not answer.
        """

    def agent(self) -> GuestAgent:
        """The client of the agent in its guest."""

    def console(self) -> socket.socket:
        """Connect to its serial console, which has one client at a time.

        Raises:
            BusyError: another client has the console.
        """

    def vsock(self) -> Vsock | None:
        """Its guest's sockets; None if it was started without them."""

    def kill(self) -> None:
        """End its process at once; `wait` waits for its end."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait at most `timeout` seconds until its process has ended; return whether it has."""


class Engine(Protocol):
    """Starts machines of one kind."""

    @property
    def name(self) -> str:
        """``native`` or ``qemu``."""

    @property
    def capabilities(self) -> Capabilities:
        """Its optional features on this host, found without a test run."""

    @property
    def overhead(self) -> int:
        """Bytes of the host's memory that a machine's processes need beside its guest's memory."""

    @property
    def share_type(self) -> ShareType:
        """How its machines mount shared directories."""

    def require(self, plan: LaunchPlan) -> None:
        """Refuse a plan that this engine does not run on this host, before anything is created.

        Raises:
            HostError: a program or a device is missing; the hint is the command to type.
            InputError: the plan needs a feature that this engine does not have.
        """

    def start(self, plan: LaunchPlan) -> Instance:
        """Start the machine's process, detached; return when it answers and its vCPUs run.

        Raises:
            EngineError: the process ended or did not answer; nothing of it is left running.
        """

    def attach(self, record: InstanceRecord) -> Instance:
        """The instance of a running machine; does not ask its process."""

    def describe(self, plan: LaunchPlan, process: ProcessIdentity) -> InstanceRecord:
        """Make the record of a running machine that has none, from the plan of its start."""

    def fingerprint(self) -> str:
        """What a saved machine needs unchanged for a restore, in addition to its plan."""

    def restores(self, fingerprint: str) -> bool:
        """Whether a machine that was saved with this fingerprint can be restored here.

        Always true for the engine's own fingerprint; maybe true for one of an older Cerne.
        """

    def saved_cards(self, directory: Path) -> int | None:
        """How many network cards a saved machine has; None if its state does not say.

        The state may come from anywhere, and nothing of it is loaded.

        Raises:
            DamagedError: it is not a saved machine of this engine.
        """

    def ending(self, logs: Path) -> Ending:
        """How the machine's process ended, from its `LaunchPlan.logs`."""
