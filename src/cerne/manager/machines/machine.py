"""The class `Machine`, for users and programs.

defined → starting → running ⇄ paused → stopping → stopped, and failed with the reason
                     running → saving → running, or suspended → running
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, Unpack, overload

from cerne.errors import CommandError, InputError
from cerne.host.cell import Cell
from cerne.manager.machines.context import MachineContext, ManagerContext
from cerne.manager.machines.notes import unserved
from cerne.manager.machines.pause import pause, resume
from cerne.manager.machines.plan import nic_plans
from cerne.manager.machines.reach import agent, console, require_vsock, vsock
from cerne.manager.machines.recovery import current_record, noticed
from cerne.manager.machines.remove import remove, undo
from cerne.manager.machines.rename import rename
from cerne.manager.machines.start import start
from cerne.manager.machines.stats import Stats, stats
from cerne.manager.machines.stop import STOP_TIMEOUT, kill_now, stop
from cerne.manager.machines.suspend import suspend, wake
from cerne.manager.machines.wait import wait
from cerne.manager.operations import Kind, recorded
from cerne.manager.snapshots.kept import KeptSnapshot
from cerne.manager.store import Event, Record, State, Subject
from cerne.units import parse_duration

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from cerne.engine.base import Vsock
    from cerne.guest import ExecResult, ExecTextResult, GuestAgent, GuestProcess, TerminalSize
    from cerne.host.process_walls import ProcessWalls
    from cerne.images import Image, Progress
    from cerne.manager.store import CardRow
    from cerne.manager.store.changes import Changes
    from cerne.spec.asked import Adjustment
    from cerne.spec.disk import Disk
    from cerne.spec.machine import MachineSpec
    from cerne.spec.nic import Nic
    from cerne.spec.ports import PublishedPort

LOG_BLOCK = 1 << 20
"""Bytes of a log that are read at once by default."""
UNPLUG_TIMEOUT = 10.0
"""Seconds within which a guest has to release a device, by default."""


VSOCK_TIMEOUT = 20.0
"""Seconds within which a guest has to answer a connection."""


class Machine:
    """A machine in the store, running or not. Get one from `Manager`."""

    def __init__(self, manager: ManagerContext, record: Record) -> None:
        self._context = MachineContext(manager, record)
        self._home = manager.home
        self._store = manager.store

    def __repr__(self) -> str:
        record = self._context.last
        return f"<Machine {record.name} {record.state} of {record.image}>"

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that stay the same after a rename."""
        return self._context.last.id

    @property
    def name(self) -> str:
        """Its name."""
        return self._context.last.name

    @property
    def record(self) -> Record:
        """Its present record; notices and records the end of a run.

        Raises:
            NotFoundError: it has been removed.
        """
        return current_record(self._context)

    @property
    def listed(self) -> Record:
        """Its record when it was found; notices the end of a run since."""
        return noticed(self._context)

    @property
    def state(self) -> State:
        """Its state now."""
        return self.record.state

    @property
    def spec(self) -> MachineSpec:
        """Its specification."""
        return self._context.spec

    @property
    def ports(self) -> tuple[PublishedPort, ...]:
        """Its published ports; while it runs, with the numbers that were chosen for it."""
        return self._context.ports

    @property
    def unserved(self) -> list[str]:
        """Its devices whose process has ended and is not restarted, such as ``net0``."""
        return unserved(self._context)

    @property
    def console_log(self) -> Path:
        """The log of its serial console in its last run."""
        return self._context.console_log

    @property
    def engine_log(self) -> Path:
        """The log of its process in its last run."""
        return self._context.directory / "engine.log"

    def start(
        self,
        timeout: float | str | None = None,
        *,
        cold: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Start it, and wait at most `timeout` seconds until its guest is ready.

        A suspended machine is woken. One that never ran goes on from the template of its kind,
        if there is one; `cold` has it boot. `progress` is called while the guest boots.

        Raises:
            StateError: it runs already.
            CapacityError, ConflictError, HostError: the host cannot run it now.
            EngineError, GuestError: it did not start, or its guest did not become ready; it has
                been killed and is ``failed``.
        """
        start(self._context, _seconds(timeout), cold=cold, progress=progress)

    def stop(self, timeout: float | str = STOP_TIMEOUT) -> None:
        """Shut its guest down; kill it if that takes more than `timeout` seconds.

        Does nothing if it does not run.

        Raises:
            StateError: it is suspended, and would lose its memory.
        """
        stop(self._context, parse_duration(timeout))

    def kill(self) -> None:
        """End it at once, as if its power were cut; a suspended one loses its memory.

        Does nothing if it does not run.
        """
        kill_now(self._context)

    def suspend(self) -> None:
        """Save its memory to the disk and end its process; `wake` continues from there.

        Raises:
            StateError: it does not run.
            EngineError, InputError: its engine cannot save it; it runs on.
            StorageError: there is no space for its memory; it runs on.
        """
        suspend(self._context)

    def wake(self) -> None:
        """Continue it from its suspended state.

        Raises:
            StateError: it is not suspended.
            CapacityError, ConflictError, HostError, DamagedError: the host cannot run it now; it
                stays suspended.
            EngineError: it did not start; it stays suspended.
            GuestError: it runs, and its agent does not answer.
        """
        wake(self._context)

    def snapshot(
        self, name: str | None = None, *, memory: bool = True, progress: Progress | None = None
    ) -> Snapshot:
        """Make a snapshot of it, to restore it or to make other machines.

        A machine that runs is kept with its memory, unless that is declined, and runs on; one
        that does not is kept with its disk alone. A name is made up if none is given.

        Raises:
            ConflictError: the name is in use.
            InputError: the name is not valid, or the snapshot would be empty.
            EngineError, StorageError: saving it failed; it is unchanged.
        """
        from cerne.manager.snapshots.take import take

        with recorded(
            self._store, Kind.SNAPSHOT_CREATE, Subject.MACHINE, self.name, progress
        ) as operation:
            row = take(self._context, name, operation, memory=memory)
            operation.result["snapshot"] = row.name
        return Snapshot(self._context.manager, row)

    def fork(
        self,
        count: int | None = None,
        *,
        names: Sequence[str] = (),
        ports: Sequence[PublishedPort | str] = (),
        network: str | None = None,
    ) -> list[Machine]:
        """Fork it: each child continues from its present state, and it keeps running.

        Args:
            count: how many; as many as there are names, or one.
            names: what they are called; names that are missing are made of this one's.
            ports: published ports, such as ``8080:80``, for a single one: its parent's are the
                parent's alone.
            network: another tap for a single one, if the parent has a tap.

        Raises:
            StateError: it does not run.
            ConflictError: a name, a port or a tap is in use.
            CapacityError: the host cannot guarantee their memory.
            EngineError, GuestError: a child did not start; there is none, and the parent runs on.
        """
        from cerne.manager.machines.fork import fork

        children = fork(self._context, count, names, ports, network)
        return [Machine(self._context.manager, child) for child in children]

    def attach_disk(
        self, disk: str | int | Path, serial: str | None = None, *, read_only: bool = False
    ) -> Disk:
        """Attach a disk, which its guest sees at once if it runs.

        Args:
            disk: a size, in bytes or as ``10G``, for an empty disk of its own; or the path of a
                file or a device of this host, raw or qcow2, which it uses as it is: a `Path`, or
                ``PATH[:ro][:format=raw]``, where a raw disk that looks like another is named so.
            serial: what its guest knows it by; one is made up if not given.
            read_only: whether it may only be read.

        Raises:
            NotFoundError, ImageError: there is no such file, or it is not usable as a disk.
            InputError: there is no slot left, or the serial is not valid.
            StateError: it is suspended.
            ConflictError: another machine uses the disk.
            EngineError, StorageError: adding it failed; nothing of it is left.
        """
        from cerne.manager.machines.attach import attach_disk

        what = str(disk) if isinstance(disk, int) else disk
        return attach_disk(self._context, what, serial, read_only=read_only)

    def detach_disk(
        self, disk: str, *, force: bool = False, timeout: float | str = UNPLUG_TIMEOUT
    ) -> Path:
        """Detach a disk by its serial or slot, after the guest has released it; return its path.

        A disk that belongs to it becomes a complete file in `Home.disks`. With `force` the guest is
        not asked.

        Raises:
            NotFoundError: it has no such disk.
            StateError: it is suspended, or paused and `force` was not given.
            GuestTimeoutError, GuestError: the guest did not release it in time, or refused.
            InputError: its engine cannot force it.
            StorageError: the disk is out and kept, and lies on layers that there is no space to
                copy.
        """
        from cerne.manager.machines.attach import detach_disk

        return detach_disk(self._context, disk, parse_duration(timeout), force=force)

    def disk_file(self, disk: Disk) -> Path:
        """The file or the device that a disk of its specification is."""
        return disk.path or self._home.disk(self.id, disk.serial)

    def attach_nic(self, network: str = "user", **fields: object) -> Nic:
        """Attach a network card, which its guest sees at once.

        `network` is ``user``, ``tap:INTERFACE`` or the name of a network with options, such as
        ``lan:address=10.20.0.5``. A card on a network with a name takes `ports`, `allow`, `egress`
        and `rate` too.

        Raises:
            InputError, NotFoundError: there is no slot left, or no such network.
            StateError: it is suspended.
            ConflictError, HostError: it cannot have the tap, the address or a port.
            EngineError: adding it failed; nothing of it is left.
        """
        from cerne.manager.machines.attach import attach_nic
        from cerne.manager.machines.telling import tell_of_card

        nic = attach_nic(self._context, network, fields)
        tell_of_card(self._context, nic)
        return nic

    def change_nic(self, number: int, **fields: object) -> Nic:
        """Change `ports`, `allow`, `egress`, `rate` or `host_access` of a card, at once.

        The card is on a network with a name, and `number` is what `card_on` gives.

        Raises:
            NotFoundError: it has no such card.
            InputError: a value is not valid.
            ConflictError: a port is in use; nothing has changed.
        """
        from cerne.manager.machines.nics import change_nic

        return change_nic(self._context, number, fields)

    def publish(self, *ports: str) -> tuple[PublishedPort, ...]:
        """Publish more ports, or ranges of them, all or none; its ports with their numbers now.

        Raises:
            InputError: it is not a port, or no card publishes ports.
            ConflictError: the port is in use.
            StateError: its card takes ports only while it is stopped.
        """
        from cerne.manager.machines.nics import publish

        return publish(self._context, ports)

    def unpublish(self, *ports: str) -> tuple[PublishedPort, ...]:
        """Publish ports no longer, each as ``[ADDRESS:]HOST[/udp]``; those that are left.

        Raises:
            NotFoundError: it publishes no such port.
            StateError: its card takes ports only while it is stopped.
        """
        from cerne.manager.machines.nics import unpublish

        return unpublish(self._context, ports)

    def card_on(self, network: str) -> int:
        """The number of its card on the network of this name.

        Raises:
            NotFoundError: it has none.
        """
        from cerne.manager.machines.cards import card_on

        return card_on(self._context, network).number

    def ports_of(self, number: int) -> tuple[PublishedPort, ...]:
        """The published ports of the card of this number."""
        return self._context.published.get(number, ())

    @property
    def cards(self) -> list[CardRow]:
        """The addresses of its cards on networks with names, by their numbers."""
        cards = self._store.cards_of(self.id)
        return [cards[number] for number in sorted(cards)]

    def disconnect(
        self, network: str, *, force: bool = False, timeout: float | str = UNPLUG_TIMEOUT
    ) -> None:
        """Detach its card on the network of this name, after the guest has released it.

        Raises:
            NotFoundError: it has no card there.
            StateError: it runs, and the card is its first one.
            StateError, GuestTimeoutError, GuestError, InputError: as `detach_disk`.
        """
        from cerne.manager.machines.attach import detach_nic

        detach_nic(self._context, network, parse_duration(timeout), force=force)

    def detach_nic(
        self, number: int, *, force: bool = False, timeout: float | str = UNPLUG_TIMEOUT
    ) -> None:
        """Detach the network card of this number, after the guest has released it.

        Raises:
            NotFoundError: it has no such card, or one that stays.
            StateError, GuestTimeoutError, GuestError, InputError: as `detach_disk`.
        """
        from cerne.manager.machines.attach import detach_nic

        detach_nic(self._context, number, parse_duration(timeout), force=force)

    def nics(self) -> dict[int, str]:
        """The addresses of its network cards by their numbers; the first, 0, stays."""
        nics = nic_plans(self.id, self.spec, self._context.network_nics())
        return {0 if nic.slot is None else nic.slot + 1: nic.mac for nic in nics}

    def pause(self) -> None:
        """Pause its vCPUs; its memory stays.

        Raises:
            StateError: it does not run.
        """
        pause(self._context)

    def resume(self) -> None:
        """Let its vCPUs run again.

        Raises:
            StateError: it does not run.
        """
        resume(self._context)

    def restart(self, timeout: float | str = STOP_TIMEOUT) -> None:
        """Stop it as `stop` does, and start it again."""
        self.stop(timeout)
        self.start()

    def rename(self, name: str) -> None:
        """Give it another name.

        Raises:
            InputError: the name is not valid.
            ConflictError: the name is in use.
            StateError: its guest knows the old name, and there is no agent to tell it.
            GuestError: setting the name in the guest failed.
        """
        rename(self._context, name)

    def create_image(
        self, name: str, *, replace: bool = False, progress: Progress | None = None
    ) -> Image:
        """Make an image of its root disk, without its identity, while it does not run.

        Host name, machine-id, keys of SSH, leases of DHCP and the journal are removed; all other
        files are the image's. `replace` takes the name from another image that has it.

        Raises:
            InputError: the name is not valid for an image, or it has no disk.
            ConflictError: the name is another image's, and `replace` was not given.
            StateError: it runs.
            CerneError: making it failed; nothing of it is left.
        """
        from cerne.manager.machines.as_image import create_image

        with recorded(self._store, Kind.IMAGE_CREATE, Subject.IMAGE, name, progress) as operation:
            image = create_image(self._context, name, replace_other=replace, progress=operation)
            operation.result |= {"image": image.name, "digest": image.digest}
        return image

    def adjust(self, **values: Unpack[Adjustment]) -> None:
        """Change the given values, at once if it runs, and for its next start.

        The guest gives back the memory above `balloon` after a while and as far as it can; `stats`
        reports it. See `Adjustment` for all values.

        Raises:
            InputError: a value is not valid, or none is given.
            HostError: this host does not let this user give a CPU weight.
            StateError: it has no balloon.
            EngineError: it does not answer; it is as it was.
        """
        from cerne.manager.machines.adjust import adjust

        adjust(self._context, values)

    def remove(self, *, force: bool = False) -> None:
        """Remove it, with its disks and logs; with `force` even while it runs.

        The console log of a failed machine is kept for a while (`Home.failures`).

        Raises:
            StateError: it runs, and `force` was not given.
        """
        remove(self._context, force=force)

    def undo(self, error: BaseException) -> None:
        """Remove it, as its making failed with this error, which is told what its logs said."""
        undo(self._context, error)

    def wait(self, timeout: float | str | None = None) -> State:
        """Wait until it does not run, at most `timeout` seconds; its state then.

        Raises:
            GuestTimeoutError: it still runs.
        """
        return wait(self._context, _seconds(timeout))

    def agent(self) -> GuestAgent:
        """The client of its guest's agent.

        Raises:
            StateError: it does not run, or is paused.
            GuestError: its image has no agent.
        """
        return agent(self._context)

    @overload
    def exec(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        stdin: bytes | BinaryIO | Iterable[bytes] | None = None,
        input: bytes | str | None = None,
        text: Literal[False] = False,
        check: bool = False,
        timeout: float | str | None = None,
        started: Callable[[GuestProcess], None] | None = None,
    ) -> ExecResult: ...

    @overload
    def exec(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        stdin: bytes | BinaryIO | Iterable[bytes] | None = None,
        input: bytes | str | None = None,
        text: Literal[True],
        check: bool = False,
        timeout: float | str | None = None,
        started: Callable[[GuestProcess], None] | None = None,
    ) -> ExecTextResult: ...

    def exec(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        stdin: bytes | BinaryIO | Iterable[bytes] | None = None,
        input: bytes | str | None = None,  # noqa: A002 - as `subprocess.run` names it
        text: bool = False,
        check: bool = False,
        timeout: float | str | None = None,
        started: Callable[[GuestProcess], None] | None = None,
    ) -> ExecResult | ExecTextResult:
        """Run a command in its guest and wait for it, as `subprocess.run` does here.

        Args:
            argv: the program, looked for in PATH, and its arguments; never one string, as no
                shell is there to take it apart (``["sh", "-c", "a | b"]`` is a shell).
            env: set over the guest's own variables.
            cwd: where it runs, an absolute path; the user's home where none is given.
            user: ``NAME``, ``UID``, ``NAME:GROUP`` or ``UID:GID``; root where none is given.
            stdin: what it reads: bytes, a binary file, or pieces as they come.
            input: what it reads, as bytes or as text; instead of `stdin`.
            text: whether ``stdout`` and ``stderr`` of the result are text (UTF-8) and not bytes.
            check: whether a status other than 0 raises.
            timeout: the time after which it is killed, in seconds or as ``90s``.
            started: is called with the process when it runs; another thread may signal it.

        Raises:
            InputError: the command is one string, or has what no process could be given.
            CommandError: it failed, and `check` was given; ``result`` is what came of it.
            GuestTimeoutError: it took longer; it has been killed.
            GuestError: it did not start, or the guest went away.
        """
        if input is not None and stdin is not None:
            raise InputError("both stdin and input were given", hint="leave one of them out")
        fed = input.encode() if isinstance(input, str) else input
        agent = self.agent()
        ended = agent.run(
            argv,
            env=env,
            cwd=cwd,
            user=user,
            stdin=stdin if fed is None else fed,
            timeout=_seconds(timeout),
            started=started,
        )
        result = ended.as_text() if text else ended
        if check and result.status != 0:
            how = f"by signal {result.signal}" if result.signal else f"with status {result.status}"
            raise CommandError(f"{argv[0]} ended {how} in {self.name}", result=result)
        return result

    def popen(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        terminal: TerminalSize | None = None,
    ) -> GuestProcess:
        """Start a command in its guest, with streams or on a terminal of its own."""
        return self.agent().popen(argv, env=env, cwd=cwd, user=user, terminal=terminal)

    def copy_in(self, local: Path | str, remote: str) -> None:
        """Copy a file or a directory of this host into its guest."""
        self.agent().push(Path(local), remote)

    def copy_out(self, remote: str, local: Path | str) -> None:
        """Copy a file or a directory of its guest to this host."""
        self.agent().pull(remote, Path(local))

    def console(self) -> socket.socket:
        """Connect to its serial console, which has one client at a time.

        Raises:
            StateError: it does not run.
            BusyError: another has the console.
        """
        return console(self._context)

    @property
    def cell(self) -> str:
        """The control groups of its processes in words, or why it has none; empty if it is down."""
        return Cell(self._context.home.machine_group(self.id)).words

    @property
    def groups(self) -> tuple[Path, ...]:
        """The directories of these control groups: with version 1 one for each controller."""
        return Cell(self._context.home.machine_group(self.id)).groups

    @property
    def walls(self) -> list[ProcessWalls]:
        """Its processes with the walls around each; empty if it is down."""
        from cerne.manager.machines.walls import walls

        return walls(self._context)

    @property
    def vsock(self) -> str:
        """Where its sockets are while it runs: a directory, or a CID; empty where it has none."""
        way = vsock(self._context)
        return "" if way is None else way.place

    @property
    def system_state(self) -> str:
        """What ``systemctl is-system-running`` prints in its guest; empty without systemd."""
        from cerne.manager.machines.boot import reported_state

        return reported_state(self._context)

    def vsock_connect(self, port: int, timeout: float = VSOCK_TIMEOUT) -> socket.socket:
        """A connection to a port that a program in its guest listens at (AF_VSOCK).

        Raises:
            StateError: it does not run, or is paused.
            HostError: it has no such sockets on this host.
            GuestError: nothing listens there, or the guest does not answer in `timeout` seconds.
        """
        return self._vsock().connect(port, timeout)

    def vsock_listen(self, port: int) -> socket.socket:
        """A listening socket: its guest's connections to its host (CID 2) at this port come there.

        Raises:
            StateError: it does not run, or is paused.
            HostError: it has no such sockets on this host.
            ConflictError: another program listens there.
        """
        return self._vsock().listen(port)

    def read_log(self, offset: int, *, engine: bool = False, most: int = LOG_BLOCK) -> bytes:
        """What its console, or its process, said in its last run: `most` bytes, from an offset on.

        The log of a console starts again where it becomes too large (see `log_size`).
        """
        try:
            with (self.engine_log if engine else self.console_log).open("rb") as log:
                log.seek(offset)
                return log.read(most)
        except FileNotFoundError:
            return b""

    def log_size(self, *, engine: bool = False) -> int:
        """Bytes of what its console, or its process, said in its last run."""
        try:
            return (self.engine_log if engine else self.console_log).stat().st_size
        except FileNotFoundError:
            return 0

    def events(self, after: int = 0) -> list[Event]:
        """Its events after the one with the number `after`."""
        return self._store.events(after, self.id)

    def changes(self) -> AbstractContextManager[Changes]:
        """Changes of the store in a block: each may be an event of this machine."""
        return self._store.changes()

    def stats(self) -> Stats:
        """Its present use of this host's resources.

        Raises:
            StateError: it does not run.
        """
        return stats(self._context)

    def _vsock(self) -> Vsock:
        return require_vsock(self._context)


class Snapshot(KeptSnapshot):
    """A snapshot that is in the store. Get one from `Manager.snapshots` or `Machine.snapshot`."""

    def restore(self, progress: Progress | None = None) -> Machine:
        """Take the machine that it is of back to it; what it has done since is lost.

        With memory it goes on from there at once, or else it boots. If the restore fails, the
        machine keeps the disk that it has.

        Raises:
            NotFoundError: that machine has been removed.
            StateError: it has other disks or network cards now.
            DamagedError, HostError: the snapshot is damaged, or this host cannot go on with it.
            CerneError: what `Machine.start` raises.
        """
        from cerne.manager.snapshots.restore import restore

        with self.recorded(Kind.SNAPSHOT_RESTORE, progress) as operation:
            record = restore(self, operation)
            operation.result["machine"] = record.name
        return Machine(self.context, record)

    def restore_as(
        self,
        name: str,
        ports: Sequence[PublishedPort | str] = (),
        network: str | None = None,
        progress: Progress | None = None,
    ) -> Machine:
        """Make another machine of it, which goes on from there, or boots where it has no memory.

        `network` names another tap where it has one.

        Raises:
            InputError, ConflictError: the name or the network is not valid, or is in use.
            CapacityError: the host cannot guarantee its memory.
            DamagedError, HostError: the snapshot is damaged, or this host cannot go on with it.
            CerneError: it did not start; nothing is left of it.
        """
        from cerne.manager.snapshots.restore import restore_as

        with self.recorded(Kind.SNAPSHOT_RESTORE, progress) as operation:
            record = restore_as(self, name, ports, network, operation)
            operation.result["machine"] = record.name
        return Machine(self.context, record)

    def export(self, target: Path, progress: Progress | None = None) -> None:
        """Write it, with the image that it is of, to one file that another host can import.

        Raises:
            InputError: the file is there already, or directories of this host are mounted in it.
            StorageError: writing it failed; nothing is left of it.
        """
        from cerne.manager.snapshots.transfer import export_snapshot

        with self.held("export"), self.recorded(Kind.SNAPSHOT_EXPORT, progress) as operation:
            export_snapshot(self.context, self, target, operation)
            operation.result["file"] = str(target)

    def remove(self) -> None:
        """Remove it; machines that were made of it are not touched."""
        from cerne.manager.snapshots.remove import remove

        remove(self.context, self.row)


def _seconds(timeout: float | str | None) -> float | None:
    """A time limit in seconds; None for no limit, or for the usual one."""
    return None if timeout is None else parse_duration(timeout)
