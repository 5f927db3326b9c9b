"""What many defined machines cost: each command with 10 of them, and with 1,000, in turn."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path

from _measure import Sample, in_turn, print_table, seconds
from cerne.manager import Home, Manager
from cerne.spec.machine import MachineSpec, machine_spec

_RUNS = 7
_FEW, _MANY = 10, 1000
_IMAGE = "blank"


class _Fleet:
    """A home with so many machines, and the command line of its user."""

    def __init__(self, place: Path, size: int) -> None:
        self._environment = os.environ | {"CERNE_HOME": str(place), "CERNE_TEMPLATES": "never"}
        # A user's commands keep their bytecode.
        self._environment.pop("PYTHONDONTWRITEBYTECODE", None)
        self._numbers = count()
        os.environ["CERNE_HOME"] = str(place)
        self._manager = Manager(Home.of_this_user())
        disk = place / "blank.raw"
        disk.write_bytes(bytes(1 << 20))
        self._manager.images.import_(str(disk), _IMAGE)
        for number in range(size):
            self._manager.create(_spec(f"machine-{number}"))
        # Where there are layers, it is to be known which of them are needed.
        self._manager.get("machine-0").snapshot("kept")

    def command(self, *words: str) -> float:
        """Seconds from the start of a command to its end."""
        typed = [sys.executable, "-m", "cerne", *words]
        return seconds(
            lambda: subprocess.run(
                typed, env=self._environment, stdout=subprocess.DEVNULL, check=True
            )
        )

    def create(self) -> float:
        """Seconds in which a machine is defined, in a process that runs already."""
        spec = _spec(f"new-{next(self._numbers)}")
        taken = seconds(lambda: self._manager.create(spec))
        self._manager.get(spec.name).remove()
        return taken

    def remove(self) -> float:
        """Seconds in which a machine is removed, in a process that runs already."""
        machine = self._manager.create(_spec(f"old-{next(self._numbers)}"))
        return seconds(machine.remove)

    def create_by_command(self) -> float:
        """Seconds of `cerne create`."""
        name = f"typed-{next(self._numbers)}"
        taken = self.command("create", "--name", name, "--memory", "64M", _IMAGE)
        self._manager.get(name).remove()
        return taken

    def remove_by_command(self) -> float:
        """Seconds of `cerne rm`."""
        name = f"typed-{next(self._numbers)}"
        self._manager.create(_spec(name))
        return self.command("rm", name)


def main() -> None:
    """Measure in two homes, and print the table."""
    place = Path(tempfile.mkdtemp(prefix="cerne-many-", dir="/tmp"))
    try:
        fleets = []
        for size in (_FEW, _MANY):
            (place / str(size)).mkdir()
            fleets.append(_Fleet(place / str(size), size))
        few, many = fleets
        rows = [
            ("`cerne ls`", *_pair(lambda: few.command("ls"), lambda: many.command("ls"))),
            (
                "`cerne ls -q`",
                *_pair(lambda: few.command("ls", "-q"), lambda: many.command("ls", "-q")),
            ),
            ("`cerne stats`", *_pair(lambda: few.command("stats"), lambda: many.command("stats"))),
            ("`cerne create`", *_pair(few.create_by_command, many.create_by_command)),
            ("`cerne rm`", *_pair(few.remove_by_command, many.remove_by_command)),
            ("`Manager.create`", *_pair(few.create, many.create)),
            ("`Machine.remove`", *_pair(few.remove, many.remove)),
        ]
        title = f"Seconds, median of {_RUNS} (least to most)"
        print_table(title, ("what", f"{_FEW} machines", f"{_MANY} machines"), rows)
    finally:
        shutil.rmtree(place)


def _spec(name: str) -> MachineSpec:
    return machine_spec(name=name, image=_IMAGE, memory="64M")


def _pair(few: Callable[[], float], many: Callable[[], float]) -> tuple[str, ...]:
    samples: tuple[Sample, ...] = in_turn(_RUNS, few, many)
    return tuple(sample.text(digits=3) for sample in samples)


if __name__ == "__main__":
    main()
