"""The note about a machine's cell, in its runtime directory, by which every later command finds it.

It is written before the control groups are made, so that a killed command leaves none behind.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from cerne.errors import DamagedError

NOTE = "group"
"""The name of the note in the machine's runtime directory."""

_SCOPE = ".scope"


@dataclass(frozen=True, slots=True)
class CellNote:
    """Where a machine's cell is."""

    way: str
    """The words for people: ``cgroup v2``; empty if it has none."""
    groups: tuple[Path, ...] = ()
    """Its control groups: one, or with cgroup v1 one for each controller."""
    unit: str = ""
    """The scope of systemd that has the group."""
    attach: tuple[str, ...] = ()
    """The command that moves the process with the pid that follows it into the cell, if the
    process itself is not allowed to."""
    why: str = ""
    """Why there is no cell."""

    @property
    def doors(self) -> tuple[Path, ...]:
        """The files to which a process writes 0 to enter."""
        return () if self.attach else tuple(group / "cgroup.procs" for group in self.groups)

    @property
    def entering(self) -> str:
        """The commands of a shell that enter, and fail if that fails; empty without a cell."""
        if self.attach:
            return f"{shlex.join(self.attach)} $$ >/dev/null"
        return " && ".join(f"echo 0 >{shlex.quote(str(door))}" for door in self.doors)

    def write(self, path: Path) -> None:
        """Write it in place of a former one."""
        values = {
            "way": self.way,
            "groups": [str(group) for group in self.groups],
            "unit": self.unit,
            "attach": self.attach,
            "why": self.why,
        }
        new = path.with_suffix(".new")
        new.write_text(json.dumps(values))
        new.rename(path)

    @classmethod
    def read(cls, path: Path) -> CellNote | None:
        """Read it; None if there is none.

        Raises:
            DamagedError: it is not a note.
        """
        try:
            text = path.read_text(errors="replace")
        except FileNotFoundError:
            return None
        if not text.startswith("{"):
            return _older(text)
        try:
            values = json.loads(text)
            return cls(
                way=str(values["way"]),
                groups=tuple(Path(group) for group in values["groups"]),
                unit=str(values["unit"]),
                attach=tuple(str(word) for word in values["attach"]),
                why=str(values["why"]),
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DamagedError(
                f"{path} is damaged: it does not say which control groups a machine has",
                hint="end the machine: cerne kill NAME",
            ) from error


def _older(text: str) -> CellNote | None:
    """A note of Cerne until November 2026: a path, or the name of a scope."""
    if text.endswith(_SCOPE) and "/" not in text:
        return CellNote("systemd", unit=text)
    return CellNote("cgroup", (Path(text),)) if text.startswith("/") else None
