"""The base of the instances of both engines: the requests by QMP."""

from __future__ import annotations

import signal
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cerne.engine.base import RunState
from cerne.engine.qmp.client import QmpClient
from cerne.errors import BusyError, EngineError

if TYPE_CHECKING:
    from cerne.engine.base import Activity, GuestMemoryUse
    from cerne.engine.record import InstanceRecord
    from cerne.guest import GuestAgent
    from cerne.host.process import ProcessIdentity
    from cerne.spec.resources import Resources

_STATUS_TIMEOUT = 2.0
"""Seconds within which a process has to report its state."""
_RUN_STATES = {"running": RunState.RUNNING, "paused": RunState.PAUSED}


@dataclass(frozen=True, slots=True)
class QmpInstance:
    """A machine whose process speaks QMP (see `Instance`)."""

    record: InstanceRecord

    @property
    def process(self) -> ProcessIdentity:
        """The machine's process."""
        return self.record.process

    def status(self) -> RunState:
        """Its run state (see `Instance.status`)."""
        with QmpClient(self.record.qmp, _STATUS_TIMEOUT) as qmp:
            return _RUN_STATES.get(qmp.status(), RunState.HELD)

    def pause(self) -> None:
        """Pause its vCPUs."""
        with QmpClient(self.record.qmp) as qmp:
            qmp.stop()

    def resume(self) -> None:
        """Let its vCPUs run."""
        with QmpClient(self.record.qmp) as qmp:
            qmp.cont()

    def power_button(self) -> None:
        """Press the guest's power button."""
        with QmpClient(self.record.qmp) as qmp:
            qmp.system_powerdown()

    def set_memory(self, size: int) -> None:
        """Ask its guest to use only so much memory (see `Instance.set_memory`)."""
        from cerne.engine.qmp.balloon import leave_memory

        with QmpClient(self.record.qmp) as qmp:
            leave_memory(qmp, size, self.record.name)

    def cpus(self) -> int:
        """How many virtual CPUs it has (see `Instance.cpus`)."""
        with QmpClient(self.record.qmp) as qmp:
            present = qmp.execute("query-cpus-fast")
        if not isinstance(present, list):
            raise EngineError(f"the process of {self.record.name} does not say which CPUs it has")
        return len(present)

    def resize_memory(self, size: int) -> int:
        """Have its guest plug or unplug memory (see `Instance.resize_memory`)."""
        from cerne.engine.qmp.memory import resize

        return resize(lambda: QmpClient(self.record.qmp), size, self.record.name)

    def memory(self) -> int:
        """Bytes of memory that its guest has or should have."""
        from cerne.engine.qmp.memory import memory_of

        with QmpClient(self.record.qmp) as qmp:
            found = memory_of(qmp)
        return self.record.memory if found is None else found.size

    def set_resources(self, resources: Resources) -> None:
        """Give it these guarantees, limits and weights (see `Instance.set_resources`)."""
        from cerne.host.cell import Cell

        self._limit_devices(resources)
        Cell(self.record.control_group).give(resources)

    def _limit_devices(self, resources: Resources) -> None:
        """Set the limits of its disks and network cards; all of them, or none.

        Raises:
            InputError, EngineError: the process has no such limit, or does not answer.
        """
        raise NotImplementedError

    def stats(self, *, runs: bool) -> GuestMemoryUse | None:
        """Its guest's report of its memory (see `Instance.stats`)."""
        from cerne.engine.qmp.balloon import guest_memory_use

        return guest_memory_use(self.record.qmp, self.record.memory, runs=runs)

    def activity(self) -> Activity:
        """What its devices and vCPUs have done (see `Instance.activity`)."""
        from cerne.engine.qmp.activity import activity

        return activity(self.record.qmp)

    def agent(self) -> GuestAgent:
        """The client of the agent in its guest."""
        from cerne.guest import GuestAgent

        return GuestAgent(self.record.agents)

    def console(self) -> socket.socket:
        """Connect to its serial console (see `Instance.console`)."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(self.record.console))
        except OSError as error:
            connection.close()
            name = self.record.name
            raise BusyError(
                f"connecting to the console of {name} failed: {error.strerror}",
                hint=f"follow its log: cerne logs -f {name}",
                machine=name,
            ) from error
        return connection

    def kill(self) -> None:
        """End its process at once."""
        self.process.send(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until its process has ended; return whether it has."""
        return self.process.wait(timeout)
