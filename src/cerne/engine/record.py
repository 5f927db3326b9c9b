"""The record of a running machine, by which every later command reaches it.

It is made when the machine starts, and stored with its process. Nothing in it is computed again
from a specification, an image or a path.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cerne.errors import DamagedError
from cerne.host.process import ProcessIdentity

if TYPE_CHECKING:
    from cerne.engine.plan import LaunchPlan

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class InstanceRecord:
    """One running machine."""

    engine: str
    """The engine's name."""
    fingerprint: str
    """`Engine.fingerprint` at the start of the process, for the state that it saves."""
    process: ProcessIdentity
    machine_id: str
    name: str
    memory: int
    """Bytes of guest memory."""
    agent: bool
    """Whether its guest has the agent."""
    runtime: Path
    """A directory of only this machine, on the runtime file system."""
    logs: Path
    """A permanent directory of only this machine."""
    control_group: Path
    """The note about the control groups of its processes."""
    qmp: Path
    console: Path
    agents: tuple[Path, ...]
    """The sockets of its agent's ports."""
    vsock_directory: Path | None = None
    """The directory of its guest's sockets, if the VMM serves them."""
    vsock_cid: int | None = None
    """Its guest's CID, if the host's kernel serves the sockets."""
    memory_file: Path | None = None
    """The file with its memory, if there is one (`LaunchPlan.memory_file`)."""
    shares_memory: bool = False
    """Whether other processes share its memory, so that it is neither saved nor forked."""
    strict: bool = False
    """Whether it shares no core's threads with other machines (`LaunchPlan.strict`)."""

    @classmethod
    def of(
        cls,
        plan: LaunchPlan,
        process: ProcessIdentity,
        engine: str,
        fingerprint: str,
        *,
        vsock_directory: Path | None = None,
        vsock_cid: int | None = None,
        shares_memory: bool = False,
    ) -> InstanceRecord:
        """The record of a machine that was started with this plan."""
        return cls(
            engine=engine,
            fingerprint=fingerprint,
            process=process,
            machine_id=plan.machine_id,
            name=plan.name,
            memory=plan.memory,
            agent=plan.agent,
            runtime=plan.runtime,
            logs=plan.logs,
            control_group=plan.control_group,
            qmp=plan.qmp_socket,
            console=plan.console_socket,
            agents=plan.agent_sockets,
            vsock_directory=vsock_directory,
            vsock_cid=vsock_cid,
            memory_file=plan.memory_file,
            shares_memory=shares_memory,
            strict=plan.strict,
        )

    def to_json(self) -> str:
        """The record as JSON, which `from_json` reads."""
        values = {
            "format": _FORMAT,
            "engine": self.engine,
            "fingerprint": self.fingerprint,
            "process": [self.process.pid, self.process.start_time, self.process.boot_id],
            "machine_id": self.machine_id,
            "name": self.name,
            "memory": self.memory,
            "agent": self.agent,
            "runtime": str(self.runtime),
            "logs": str(self.logs),
            "control_group": str(self.control_group),
            "qmp": str(self.qmp),
            "console": str(self.console),
            "agents": [str(path) for path in self.agents],
            "vsock_directory": None if self.vsock_directory is None else str(self.vsock_directory),
            "vsock_cid": self.vsock_cid,
            "memory_file": None if self.memory_file is None else str(self.memory_file),
            "shares_memory": self.shares_memory,
            "strict": self.strict,
        }
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str) -> InstanceRecord:
        """Read a record that `to_json` wrote.

        Raises:
            DamagedError: it is damaged, or has another format.
        """
        try:
            values = json.loads(text)
            if values["format"] != _FORMAT:
                raise DamagedError(
                    f"the record of a running machine has format {values['format']!r},"
                    f" and this version of Cerne reads format {_FORMAT}",
                    hint="use the version of Cerne that started the machine",
                )
            pid, start_time, boot_id = values["process"]
            cid = values["vsock_cid"]
            return cls(
                engine=str(values["engine"]),
                fingerprint=str(values["fingerprint"]),
                process=ProcessIdentity(int(pid), int(start_time), str(boot_id)),
                machine_id=str(values["machine_id"]),
                name=str(values["name"]),
                memory=int(values["memory"]),
                agent=bool(values["agent"]),
                runtime=_located(values["runtime"]),
                logs=_located(values["logs"]),
                control_group=_located(values["control_group"]),
                qmp=_located(values["qmp"]),
                console=_located(values["console"]),
                agents=tuple(_located(path) for path in values["agents"]),
                vsock_directory=_path(values["vsock_directory"]),
                vsock_cid=None if cid is None else int(cid),
                memory_file=_path(values["memory_file"]),
                shares_memory=bool(values["shares_memory"]),
                # A machine that an older Cerne started does not say.
                strict=bool(values.get("strict", False)),
            )
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise DamagedError(
                f"the record of a running machine is damaged: {error!r}",
                hint="end the machine: cerne kill NAME",
            ) from error


def _path(value: object) -> Path | None:
    return None if value is None else _located(value)


def _located(value: object) -> Path:
    """A path that the system can be given.

    Raises:
        ValueError, TypeError: it is none.
    """
    if not isinstance(value, str) or "\0" in value:
        raise TypeError(f"{value!r} is not a path")
    os.fsencode(value)
    return Path(value)
