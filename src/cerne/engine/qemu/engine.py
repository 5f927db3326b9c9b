"""The engine `qemu`: each machine is a qemu-system-x86_64 process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cerne.engine.base import DiskPlan, Ending, FirmwareBoot, LaunchPlan
from cerne.engine.detached import answering, listening_socket, reap, spawn
from cerne.engine.qemu.command_line import PID_FILE, Accelerator, command_line
from cerne.engine.qemu.ending import read_ending
from cerne.errors import EngineError, HostError, InputError
from cerne.host.process import ProcessIdentity
from cerne.host.programs import require_program
from cerne.network.ports import require_free

_BINARY = "qemu-system-x86_64"
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
            return answering(pid, plan, "QEMU")
        except EngineError:
            # Another process may have taken a port since it was looked at: better words for that.
            require_free(forward for nic in plan.nics for forward in nic.forwards)
            raise

    def fingerprint(self) -> str:
        """See `Engine.fingerprint`."""
        return self.name

    def save(
        self, plan: LaunchPlan, directory: Path, disks: tuple[DiskPlan, ...], *, resume: bool
    ) -> None:
        """Save a machine's memory and devices (see `Engine.save`)."""
        raise InputError(f"{plan.name} cannot be saved: its engine does not do that yet")

    def fork(
        self, plan: LaunchPlan, disks: tuple[DiskPlan, ...], children: Sequence[LaunchPlan]
    ) -> list[ProcessIdentity]:
        """Fork a running machine (see `Engine.fork`)."""
        raise InputError(f"{plan.name} cannot be forked", hint="save it and restore it instead")

    def ending(self, logs: Path) -> Ending:
        """How the process whose logs these are ended."""
        reap()
        return read_ending(logs)


def _require_short_paths(plan: LaunchPlan) -> None:
    paths = (plan.qmp_socket, plan.console_socket, *plan.agent_sockets)
    longest = max(paths, key=lambda path: len(str(path).encode()))
    if len(str(longest).encode()) > _LONGEST_SOCKET_PATH:
        raise HostError(
            f"{longest} is too long for a Unix socket ({_LONGEST_SOCKET_PATH} bytes at most)",
            hint="set CERNE_HOME, or XDG_RUNTIME_DIR, to a shorter path",
        )
