"""What a VMM process is told by whoever starts it: a JSON file, paths and numbers, no names."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from cerne.errors import DamagedError


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
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DamagedError(f"{path} is no configuration of a machine: {error}") from error
