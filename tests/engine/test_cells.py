"""The processes of native machines are in their cells, also those that are forked."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.cells import skip_without_limits
from tests.engine.fleet import Fleet

from cerne.host.cell import Cell, CellPlan, made
from cerne.host.cell_note import CellNote
from cerne.spec.resources import Resources


@pytest.fixture
def limits() -> None:
    """Skips where this host does not let us limit machines."""
    skip_without_limits()


def _plan(fleet: Fleet, name: str) -> CellPlan:
    plan = fleet.plan(name)
    return CellPlan(f"test-{name}-{os.getpid()}", plan.control_group, Resources())


def _members(fleet: Fleet, name: str) -> set[int]:
    """The processes that are in all control groups of a machine."""
    note = CellNote.read(fleet.plan(name).control_group)
    assert note is not None
    inside = [set(map(int, door.read_text().split())) for door in _doors(note.groups)]
    return set.intersection(*inside)


def _doors(groups: tuple[Path, ...]) -> list[Path]:
    return [group / "cgroup.procs" for group in groups]


def test_each_machine_is_in_its_own_cell(limits: None, fleet: Fleet) -> None:
    names = ["b", "c", "d"]
    cells = [_plan(fleet, name) for name in names]
    try:
        with ExitStack() as stack:
            for cell in cells:
                stack.enter_context(made(cell))
            # A process that has the VMM loaded may fork it, which started "a".
            fleet.start("b")
            fleet.fork("b", ["c", "d"])
        for name in names:
            assert _members(fleet, name) == {fleet.instance(name).process.pid}
    finally:
        for cell in cells:
            Cell(cell.note).end()
    for name in names:
        assert fleet.instance(name).wait(0)
