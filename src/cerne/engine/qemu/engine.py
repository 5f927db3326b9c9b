"""The engine `qemu`: each machine is a qemu-system-x86_64 process of its own."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path

from cerne.engine.base import Ending, FirmwareBoot, LaunchPlan
from cerne.engine.detached import last_line, listening_socket, reap, spawn
from cerne.engine.qemu.command_line import PID_FILE, Accelerator, command_line
from cerne.engine.qemu.ending import read_ending
from cerne.errors import EngineError, HostError, InputError
from cerne.host.process import ProcessIdentity
from cerne.host.programs import require_program
from cerne.network.ports import require_free

_BINARY = "qemu-system-x86_64"
_ANSWER_TIMEOUT = 60.0
# sun_path of sockaddr_un, with its end (unix(7)).
_LONGEST_SOCKET_PATH = 107


@dataclass(frozen=True, slots=True)
class QemuEngine:
    """Starts machines by QEMU."""

    accelerator: Accelerator

    @property
    def name(self) -> str:
        """``qemu``."""
        return "qemu"

    def require(self, plan: LaunchPlan) -> None:
        """Refuse what cannot be run here, before anything is created (see `Engine.require`)."""
        require_program(_BINARY)
        _require_short_paths(plan)
        if isinstance(plan.boot, FirmwareBoot) and not plan.disks:
            raise InputError(f"{plan.name} has neither a kernel nor a disk to boot from")
        forwards = [forward for nic in plan.nics for forward in nic.forwards]
        for forward in forwards:
            if ":" in forward.host_address:
                raise InputError(
                    f"port {forward} cannot be published: the network of QEMU has IPv4 alone",
                    hint=f"publish it as {forward.host_port}:{forward.guest_port}",
                )
        require_free(forwards)

    def start(self, plan: LaunchPlan) -> ProcessIdentity:
        """Start the machine's process; return when it answers and its vCPUs run."""
        (plan.logs / PID_FILE).unlink(missing_ok=True)
        with listening_socket(plan.qmp_socket) as listener:
            descriptor = listener.fileno()
            argv = command_line(
                require_program(_BINARY), plan, self.accelerator, qmp_descriptor=descriptor
            )
            pid = spawn(argv, plan.engine_log, [descriptor])
        try:
            process = _answering(pid, plan)
        except BaseException:
            _kill(pid)
            raise
        return process

    def ending(self, logs: Path) -> Ending:
        """How the process whose logs these are ended."""
        reap()
        return read_ending(logs)


def _answering(pid: int, plan: LaunchPlan) -> ProcessIdentity:
    # Imported only now: the machine starts meanwhile.
    from cerne.engine.qmp import QmpClient

    try:
        with QmpClient(plan.qmp_socket, timeout=_ANSWER_TIMEOUT) as qmp:
            status = qmp.status()
    except EngineError as error:
        raise _failure(plan, error) from error
    process = ProcessIdentity.of(pid)
    if status != "running" or process is None:
        raise EngineError(f"QEMU did not start {plan.name}: it is {status}", machine=plan.name)
    return process


def _failure(plan: LaunchPlan, error: EngineError) -> EngineError:
    # Another process may have taken a port since it was looked at; that is said in better words.
    require_free(forward for nic in plan.nics for forward in nic.forwards)
    cause = last_line(plan.engine_log) or error.message
    return EngineError(
        f"QEMU did not start {plan.name}: {cause}",
        hint=f"its log is {plan.engine_log}",
        machine=plan.name,
    )


def _kill(pid: int) -> None:
    process = ProcessIdentity.of(pid)
    if process is not None:
        process.send(signal.SIGKILL)
        process.wait()
    reap()


def _require_short_paths(plan: LaunchPlan) -> None:
    paths = (plan.qmp_socket, plan.console_socket, *plan.agent_sockets)
    longest = max(paths, key=lambda path: len(str(path).encode()))
    if len(str(longest).encode()) > _LONGEST_SOCKET_PATH:
        raise HostError(
            f"{longest} is too long for a Unix socket ({_LONGEST_SOCKET_PATH} bytes at most)",
            hint="set CERNE_HOME, or XDG_RUNTIME_DIR, to a shorter path",
        )
