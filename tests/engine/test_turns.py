"""In what turns a machine is forked: by the descriptors that its children need."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cerne.engine.native.configuration import child_configuration
from cerne.engine.native.turns import MOST_AT_ONCE, turns
from cerne.engine.opened import Opened
from cerne.engine.plan import DiskPlan, KernelBoot, LaunchPlan
from cerne.errors import EngineError
from cerne.storage.overlay import create_overlay
from cerne.units import MIB


@pytest.fixture
def make(home: Path, tmp_path: Path) -> LaunchPlan:
    for name in ("kernel", "initrd"):
        (tmp_path / name).touch()
    boot = KernelBoot(tmp_path / "kernel", tmp_path / "initrd", "")
    return LaunchPlan("a", "a", 1, 16 * MIB, boot, (), (), (), home, home)


def _layered(directory: Path, layers: int) -> DiskPlan:
    top, form = directory / "0", "raw"
    top.write_bytes(bytes(MIB))
    for number in range(1, layers):
        over = directory / str(number)
        create_overlay(top, form, over, MIB)
        top, form = over, "qcow2"
    return DiskPlan(top, form)


def test_turns_fit_one_message_and_the_limit(make: LaunchPlan, tmp_path: Path) -> None:
    assert [len(turn) for turn in turns((), [make] * 40, 10_000)] == [12, 12, 12, 4]
    disk = _layered(tmp_path, 55)
    child = replace(make, disks=(disk,))
    many = turns((disk,), [child] * 16, 10_000)
    assert [len(turn) for turn in many] == [2] * 8
    assert [len(turn) for turn in turns((disk,), [child] * 4, 150)] == [1] * 4
    assert max(map(len, turns((), [make] * 40, 10_000))) <= MOST_AT_ONCE


def test_no_room_for_one_child_is_refused_in_words(make: LaunchPlan, tmp_path: Path) -> None:
    child = replace(make, disks=(_layered(tmp_path, 55),))
    with pytest.raises(EngineError, match=r"needs \d+ open files, .* may open 60 more"):
        turns((), [child], 60)


def test_no_fewer_are_counted_than_are_opened(make: LaunchPlan, tmp_path: Path) -> None:
    child = replace(make, disks=(_layered(tmp_path, 3),))
    with Opened(sent=True) as opened:
        child_configuration(child, opened, emulated=False)
        needed = len(opened.descriptors)
    with pytest.raises(EngineError):
        turns((), [child], needed - 1)
    assert turns((), [child], needed + 4) == [[child]]
