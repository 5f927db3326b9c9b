"""One machine and its life.

    defined → starting → running ⇄ paused → stopping → stopped, and failed with the reason

Every operation holds the machine's lock, begins from what its process says, and is one
transaction a change. Whatever is killed midway is found and put right by the next operation.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cerne.errors import (
    BusyError,
    CerneError,
    ConflictError,
    EngineError,
    GuestError,
    GuestTimeoutError,
    StateError,
)
from cerne.host.process import boot_id
from cerne.manager.admission import memory_limit
from cerne.manager.lock import held, is_held
from cerne.manager.names import check_name
from cerne.manager.plan import launch_plan, share_tag
from cerne.manager.readiness import BootWatch, ended_before_ready, last_lines
from cerne.manager.recovery import discard, kill_strays
from cerne.manager.stats import Stats, measure
from cerne.manager.store import Event, Record, State, Store

if TYPE_CHECKING:
    from cerne.engine.base import Engine, LaunchPlan
    from cerne.guest import ExecResult, GuestAgent, GuestProcess, TerminalSize
    from cerne.images import Image, ImageStore
    from cerne.manager.home import Home
    from cerne.manager.spec import MachineSpec

_log = logging.getLogger(__name__)

READY_TIMEOUT = 120.0
"""Seconds that a guest may take to become ready, unless a command says otherwise."""

STOP_TIMEOUT = 10.0
"""Seconds that a guest may take to shut down before it is killed, unless a command says
otherwise."""

_KILL_TIMEOUT = 10.0
_ENDING_TIMEOUT = 2.0
_FAILURES_KEPT = 20


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every machine of one manager shares."""

    home: Home
    store: Store
    images: Callable[[], ImageStore]
    choose_engine: Callable[[str], Engine]


class Machine:
    """A machine that is in the store, whether it runs or not. Get one from `Manager`."""

    def __init__(self, surroundings: Surroundings, record: Record) -> None:
        self._home = surroundings.home
        self._store = surroundings.store
        self._surroundings = surroundings
        self._last = record

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that stay the same whatever it is named."""
        return self._last.id

    @property
    def name(self) -> str:
        """Its name."""
        return self._last.name

    @property
    def record(self) -> Record:
        """What is known of it now; a run that has ended is noticed and recorded.

        Raises:
            NotFoundError: it has been removed.
        """
        self._last = self._store.get(self.id)
        if self._needs_settling(self._last) and not is_held(self._lock_path):
            with self._operation("recovery") as record:
                self._last = record
        return self._last

    @property
    def state(self) -> State:
        """Its state now."""
        return self.record.state

    @property
    def spec(self) -> MachineSpec:
        """What was asked for."""
        from cerne.manager.spec import stored_spec

        return stored_spec(self._last.spec)

    @property
    def console_log(self) -> Path:
        """Everything that its serial console said in its last run."""
        return self._home.machine_directory(self.id) / "console.log"

    @property
    def engine_log(self) -> Path:
        """What its process said in its last run."""
        return self._home.machine_directory(self.id) / "engine.log"

    def start(self, timeout: float | None = None) -> None:
        """Start it, and wait at most `timeout` seconds until its guest is ready.

        Raises:
            StateError: it runs already.
            CapacityError, ConflictError, HostError: the host cannot run it now.
            EngineError, GuestError: it did not start, or its guest did not become ready; it has
                been killed and is ``failed``.
        """
        with self._operation("start") as record:
            if record.state.live:
                raise StateError(
                    f"{record.name} is {record.state} already",
                    hint=f"restart it with: cerne restart {record.name}",
                    machine=record.name,
                )
            image = self._image()
            self._last = self._launch(record, image)
        self._await_ready(image, READY_TIMEOUT if timeout is None else timeout)

    def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """Shut its guest down; kill it if that takes more than `timeout` seconds.

        Nothing happens where it does not run.
        """
        with self._operation("stop") as record:
            if not record.state.live or record.process is None:
                return
            was_ready = record.ready is not None
            stopping = self._store.change(record, State.STOPPING)
            deadline = time.monotonic() + timeout
            # In a thread: a guest that hangs must not make anybody wait longer than was said.
            asking = threading.Thread(
                target=self._ask_to_shut_down, args=(record, was_ready), daemon=True
            )
            asking.start()
            if record.process.wait(max(0.0, deadline - time.monotonic())):
                self._last = self._ended(stopping, State.STOPPED, "shut down")
            else:
                late = f"killed: it did not shut down within {timeout:g} s"
                self._last = self._kill(stopping, late)
            asking.join(_KILL_TIMEOUT)

    def kill(self) -> None:
        """End it at once, as if its power were cut. Nothing happens where it does not run."""
        # Before the lock is asked for: a stop that waits for its guest must not hold this up.
        process = self._store.get(self.id).process
        if process is not None:
            process.send(signal.SIGKILL)
            process.wait(_KILL_TIMEOUT)
        with self._operation("kill", settle=False) as record:
            if record.state.live:
                self._last = self._kill(record, "killed")

    def pause(self) -> None:
        """Hold its vCPUs where they are; its memory stays.

        Raises:
            StateError: it does not run.
        """
        with self._operation("pause") as record:
            self._require(record, State.RUNNING, State.PAUSED)
            paused = self._store.change(record, State.PAUSED)
            try:
                self._qmp("stop")
            except EngineError:
                self._store.change(paused, State.RUNNING, kind="resumed")
                raise

    def resume(self) -> None:
        """Let its vCPUs run on.

        Raises:
            StateError: it does not run.
        """
        with self._operation("resume") as record:
            self._require(record, State.RUNNING, State.PAUSED)
            self._qmp("cont")
            if record.state is State.PAUSED:
                self._store.change(record, State.RUNNING, kind="resumed")

    def restart(self, timeout: float = STOP_TIMEOUT) -> None:
        """Stop it as `stop` does, and start it again."""
        self.stop(timeout)
        self.start()

    def rename(self, name: str) -> None:
        """Give it another name.

        Raises:
            InputError: that cannot be a name.
            ConflictError: the name is in use, or the machine runs: its guest knows the old name.
        """
        check_name(name)
        with self._operation("rename") as record:
            if record.state.live:
                raise StateError(
                    f"{record.name} is {record.state}, and its guest knows its name",
                    hint=f"stop it first: cerne stop {record.name}",
                    machine=record.name,
                )
            spec = self.spec.model_copy(update={"name": name})
            self._store.rename(record, name, spec.model_dump_json())
            self._last = self._store.get(self.id)

    def remove(self, *, force: bool = False) -> None:
        """Remove it, with its disks and logs; with `force` even while it runs.

        The console log of a failed machine is kept for a while (`Home.failures`).

        Raises:
            StateError: it runs, and `force` was not given.
        """
        if force:
            self.kill()
        with self._operation("remove") as record:
            if record.state.live:
                raise StateError(
                    f"{record.name} is {record.state}",
                    hint=f"stop it first, or: cerne rm --force {record.name}",
                    machine=record.name,
                )
            if record.state is State.FAILED:
                self._keep_failure(record)
            # From here on it does not exist; what is left of it is swept by the next `create`.
            self._store.remove(record)
            discard(self._home.machine_directory(self.id))
            discard(self._home.machine_runtime(self.id))
            self._lock_path.unlink(missing_ok=True)

    def wait(self, timeout: float | None = None) -> State:
        """Wait until it does not run, at most `timeout` seconds; its state then.

        Raises:
            GuestTimeoutError: it still runs.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (record := self.record).state.live:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise GuestTimeoutError(
                    f"{self.name} is still {record.state} after {timeout:g} s",
                    hint=f"stop it with: cerne stop {self.name}",
                    machine=self.name,
                )
            if record.process is None:
                time.sleep(0.05)
            else:
                record.process.wait(left)
        return record.state

    def agent(self) -> GuestAgent:
        """Its guest's agent, for all that is done inside.

        Raises:
            StateError: it does not run, or is paused.
            GuestError: its image has no agent.
        """
        from cerne.guest import GuestAgent

        record = self.record
        self._require(record, State.RUNNING)
        if record.ready is None and not self._image().agent:
            raise GuestError(
                f"the image of {record.name} has no agent in it",
                hint=f"use its console: cerne console {record.name}",
                machine=record.name,
            )
        return GuestAgent(self._plan_of(record).agent_sockets)

    def exec(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        stdin: bytes = b"",
        timeout: float | None = None,
    ) -> ExecResult:
        """Run a command in its guest and wait for it, at most `timeout` seconds.

        Raises:
            GuestTimeoutError: it took longer; it has been killed.
            GuestError: it could not be run.
        """
        return self.agent().run(argv, env=env, cwd=cwd, user=user, stdin=stdin, timeout=timeout)

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
        """A connection to its serial console, for one at a time.

        Raises:
            StateError: it does not run.
            BusyError: another has the console.
        """
        self._require(self.record, State.RUNNING, State.PAUSED)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(self._plan_of(self._last).console_socket))
        except OSError as error:
            connection.close()
            raise BusyError(
                f"the console of {self.name} cannot be had: {error.strerror}",
                hint=f"follow it without one: cerne logs -f {self.name}",
                machine=self.name,
            ) from error
        return connection

    def events(self, after: int = 0) -> list[Event]:
        """What happened to it, from the event numbered `after` on."""
        return self._store.events(after, self.id)

    def stats(self) -> Stats:
        """What it uses of this host now.

        Raises:
            StateError: it does not run.
        """
        record = self.record
        self._require(record, State.RUNNING, State.PAUSED)
        return measure(record, self._home.machine_directory(self.id))

    @property
    def _lock_path(self) -> Path:
        return self._home.machine_lock(self.id)

    @contextlib.contextmanager
    def _operation(self, name: str, *, settle: bool = True) -> Iterator[Record]:
        with held(self._lock_path, name, self.name):
            record = self._store.get(self.id)
            if settle and self._needs_settling(record):
                record = self._settled(record)
            self._last = record
            yield record

    def _needs_settling(self, record: Record) -> bool:
        if not record.state.live:
            return False
        if record.state in (State.STARTING, State.STOPPING) or record.process is None:
            return True
        return not record.process.alive()

    def _settled(self, record: Record) -> Record:
        """Put right what an interrupted command, an ended process or a restarted host left."""
        if record.process is None:
            kill_strays(self._home.machine_runtime(self.id))
            why = "the command that started it was interrupted"
            return self._ended(record, State.FAILED, why)
        if record.process.alive():
            return self._store.change(record, State.RUNNING, kind="stop interrupted")
        if record.process.boot_id != boot_id():
            return self._ended(record, State.STOPPED, "the host was restarted")
        ending = self._surroundings.choose_engine(record.engine).ending(self.console_log.parent)
        return self._ended(record, State.STOPPED if ending.orderly else State.FAILED, ending.reason)

    def _ended(self, record: Record, state: State, reason: str) -> Record:
        _log.debug("%s is %s: %s", record.name, state, reason)
        discard(self._home.machine_runtime(self.id))
        return self._store.change(record, state, reason=reason)

    def _kill(self, record: Record, reason: str, state: State = State.STOPPED) -> Record:
        if record.process is not None:
            record.process.send(signal.SIGKILL)
            if not record.process.wait(_KILL_TIMEOUT):
                raise EngineError(
                    f"process {record.process.pid} of {record.name} does not end",
                    hint="it is stuck in the kernel: see dmesg",
                    machine=record.name,
                )
        else:
            kill_strays(self._home.machine_runtime(self.id))
        return self._ended(record, state, reason)

    def _image(self) -> Image:
        return self._surroundings.images().get(self._last.digest)

    def _plan_of(self, record: Record) -> LaunchPlan:
        return launch_plan(self._home, record, self.spec, self._image())

    def _launch(self, record: Record, image: Image) -> Record:
        spec = self.spec
        engine = self._surroundings.choose_engine(spec.engine)
        plan = launch_plan(self._home, record, spec, image)
        engine.require(plan)
        self._store.reserve(record, engine.name, memory_limit())
        try:
            discard(plan.runtime)
            plan.runtime.mkdir(mode=0o700)
            self.console_log.unlink(missing_ok=True)
            self.engine_log.unlink(missing_ok=True)
            process = engine.start(plan)
            _log.debug("%s runs on %s as process %d", record.name, engine.name, process.pid)
            return self._store.set_process(record, process)
        except BaseException as error:
            kill_strays(plan.runtime)
            why = error.message if isinstance(error, CerneError) else "its start was interrupted"
            self._ended(self._store.get(record.id), State.FAILED, why)
            raise

    def _await_ready(self, image: Image, timeout: float) -> None:
        if not image.agent:
            return
        process = self._last.process
        assert process is not None
        watch = BootWatch(self.name, process, self.console_log)
        try:
            agent = self.agent()
            agent.wait_ready(timeout, alive=watch.check)
            _log.debug("the agent of %s answers", self.name)
            self._mount_shares(agent)
            self._last = self._store.set_ready(self._last)
        except BaseException as error:
            raise self._failed_to_become_ready(error, timeout) from error

    def _failed_to_become_ready(self, error: BaseException, timeout: float) -> BaseException:
        """Kill a machine that did not become ready; the error that says why."""
        if type(error) is GuestError and self._last.process is not None:
            # The connection broke: the process is most likely ending, and will have said why.
            self._last.process.wait(_ENDING_TIMEOUT)
        with self._operation("kill") as record:
            if not record.state.live:
                return ended_before_ready(record.name, record.reason, self.console_log)
            why = error.message if isinstance(error, CerneError) else "its start was interrupted"
            self._last = self._kill(record, why, State.FAILED)
        if not isinstance(error, GuestTimeoutError):
            return error
        said = last_lines(self.console_log)
        end = f"; its console ended with: {said[-1]}" if said else "; its console said nothing"
        return GuestTimeoutError(
            f"{self.name} was not ready after {timeout:g} s{end}",
            hint=f"its console log is {self.console_log}; --timeout gives it longer",
            machine=self.name,
        )

    def _mount_shares(self, agent: GuestAgent) -> None:
        for index, mount in enumerate(self.spec.mounts):
            mode = "ro" if mount.read_only else "rw"
            options = f"trans=virtio,version=9p2000.L,msize=262144,{mode}"
            script = 'mkdir -p "$1" && exec mount -t 9p -o "$2" "$3" "$1"'
            argv = ["sh", "-c", script, "sh", mount.target, options, share_tag(index)]
            done = agent.run(argv)
            if done.status != 0:
                said = done.stderr.decode(errors="replace").strip()
                raise GuestError(
                    f"{mount.source} could not be mounted at {mount.target} in {self.name}: {said}",
                    hint="the guest's kernel needs 9p over virtio, as that of: cerne kernel build",
                    machine=self.name,
                )

    def _ask_to_shut_down(self, record: Record, was_ready: bool) -> None:
        """Tell the guest to shut down, by its agent or by its power button."""
        # What goes wrong here is the guest's affair: it is killed if it does not shut down.
        with contextlib.suppress(CerneError):
            if record.state is State.PAUSED:
                self._qmp("cont")
            if was_ready and self._told_agent(record):
                return
            self._qmp("system_powerdown")

    def _told_agent(self, record: Record) -> bool:
        from cerne.guest import GuestAgent

        try:
            GuestAgent(self._plan_of(record).agent_sockets).shutdown()
        except (GuestError, ConflictError):
            return False
        return True

    def _qmp(self, command: str) -> None:
        from cerne.engine.qmp import QmpClient

        with QmpClient(self._home.machine_runtime(self.id) / "qmp.sock") as client:
            client.execute(command)

    def _require(self, record: Record, *states: State) -> None:
        if record.state not in states:
            reason = f" ({record.reason})" if record.reason else ""
            remedy = "resume" if record.state is State.PAUSED else "start"
            raise StateError(
                f"{record.name} is {record.state}{reason}",
                hint=f"{remedy} it with: cerne {remedy} {record.name}",
                machine=record.name,
            )

    def _keep_failure(self, record: Record) -> None:
        if not self.console_log.exists():
            return
        # A log that cannot be kept, on a full disk say, must not keep the machine.
        with contextlib.suppress(OSError):
            shutil.copyfile(self.console_log, self._home.failure_log(record.name))
            logs = sorted(self._home.failures.iterdir(), key=os.path.getmtime)
            for log in logs[:-_FAILURES_KEPT]:
                log.unlink()
