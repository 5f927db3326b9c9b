"""The registers of processors that come while a guest runs."""

from __future__ import annotations

import pytest

from cerne.devices.cpu_hotplug import CpuHotplug
from cerne.errors import DamagedError


def test_a_guest_sees_what_came_until_it_has_announced_it() -> None:
    registers = CpuHotplug(2)
    assert (registers.read(0, 4), registers.read(4, 4)) == (2, 2)
    registers.add(4)
    assert (registers.read(0, 4), registers.read(4, 4)) == (4, 2)
    registers.write(4, 4, 4)
    assert registers.read(4, 4) == 4


def test_a_guest_announces_no_more_than_there_are() -> None:
    registers = CpuHotplug(2)
    registers.write(4, 4, 0xFFFF_FFFF)
    registers.write(0, 4, 7)
    registers.write(4, 1, 0)
    assert (registers.read(0, 4), registers.read(4, 4)) == (2, 2)
    assert registers.read(0, 1) == registers.read(2, 4) == 0


@pytest.mark.parametrize(
    "state",
    [
        {"present": 0, "announced": 0},
        {"present": 2, "announced": 3},
        {"present": 1 << 13, "announced": 1},
        {"present": 2},
    ],
)
def test_what_was_never_saved_is_refused(state: dict[str, int]) -> None:
    with pytest.raises(DamagedError):
        CpuHotplug(1).restore(dict(state))
