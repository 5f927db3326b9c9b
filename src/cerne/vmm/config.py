"""What a VMM process is told by whoever starts it: a JSON file, paths and numbers, no names."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cerne.errors import DamagedError


@dataclass(frozen=True, slots=True)
class DiskConfig:
    """A disk of the machine."""

    path: str
    read_only: bool = False
    serial: str = ""


@dataclass(frozen=True, slots=True)
class VmmConfig:
    """One machine, with every file that its process may touch."""

    name: str
    cpus: int
    memory: int
    """Bytes."""
    kernel: str
    initrd: str | None
    command_line: str
    qmp_descriptor: int
    """A listening Unix socket that the process inherits."""
    console_socket: str
    console_log: str
    agent_sockets: list[str]
    ending: str
    """Where the process says how the machine ended."""
    disks: list[DiskConfig] = field(default_factory=list)
    mac: str | None = None
    network_socket: str | None = None
    """A stream socket on which frames go to and from a user-mode network."""
    emulated: bool = False
    """Whether this host's kernel emulates guests' kernel code (`cerne.host.probe`)."""

    def write(self, path: Path) -> None:
        """Write it for a process to read."""
        path.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, path: Path) -> VmmConfig:
        """Read what `write` wrote.

        Raises:
            DamagedError: it is something else.
        """
        try:
            fields = json.loads(path.read_text())
            disks = [DiskConfig(**disk) for disk in fields.pop("disks")]
            return cls(**fields, disks=disks)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DamagedError(f"{path} is no configuration of a machine: {error}") from error
