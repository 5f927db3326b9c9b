"""The hot-plug registers, and functions that come and go: whatever a guest writes meanwhile."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cerne.devices.pci.function import COMMAND, COMMAND_MEMORY, Bar, PciFunction, PciIdentity
from cerne.devices.pci.hotplug import REGISTERS, PciHotplug
from cerne.devices.pci.root import PciRoot
from cerne.errors import DamagedError

UP, DOWN, EJECT, REFUSED = 0, 4, 8, 12
FIRST_KEPT = 24
_SLOTS = st.integers(0, 31)

_HOST = st.tuples(st.sampled_from(("plugged", "ask_back", "forget")), _SLOTS)
_ACCESS = st.tuples(
    st.sampled_from(("read", "write")),
    st.integers(0, REGISTERS - 1),
    st.sampled_from((1, 2, 4, 8)),
    st.one_of(st.integers(0, (1 << 64) - 1), _SLOTS.map(lambda slot: 1 << slot)),
)


class Machine:
    """Registers, and what they told the machine."""

    def __init__(self) -> None:
        self.signals = 0
        self.ejected: list[int] = []
        self.refused: list[int] = []
        self.registers = PciHotplug(self._signal, self.ejected.append, self.refused.append)

    def _signal(self) -> None:
        self.signals += 1


def test_a_guest_is_told_once_and_answers_once() -> None:
    machine = Machine()
    registers = machine.registers
    registers.plugged(24)
    registers.plugged(31)
    assert machine.signals == 2
    assert registers.read(UP, 4) == 1 << 24 | 1 << 31
    assert registers.read(UP, 4) == 0
    registers.ask_back(24)
    assert registers.read(DOWN, 4) == 1 << 24
    assert registers.read(DOWN, 4) == 0
    registers.write(EJECT, 4, 1 << 24)
    registers.write(EJECT, 4, 1 << 24)
    assert machine.ejected == [24]


def test_nobody_but_the_owner_takes_a_device() -> None:
    machine = Machine()
    machine.registers.write(EJECT, 4, 0xFFFFFFFF)
    machine.registers.ask_back(25)
    machine.registers.forget(25)
    machine.registers.write(EJECT, 4, 0xFFFFFFFF)
    assert machine.ejected == []
    assert machine.registers.read(DOWN, 4) == 0


def test_a_refusal_ends_the_request() -> None:
    machine = Machine()
    machine.registers.ask_back(26)
    machine.registers.write(REFUSED, 4, 26 | 0x83 << 8)
    machine.registers.write(REFUSED, 4, 26)
    machine.registers.write(REFUSED, 4, 200 | 0x81 << 8)
    assert machine.refused == []
    machine.registers.write(REFUSED, 4, 26 | 0x81 << 8)
    machine.registers.write(EJECT, 4, 1 << 26)
    assert (machine.refused, machine.ejected) == ([26], [])


def test_what_is_pending_is_kept() -> None:
    machine, other = Machine(), Machine()
    machine.registers.plugged(24)
    machine.registers.ask_back(25)
    other.registers.restore(machine.registers.state())
    assert other.registers.state() == machine.registers.state()
    assert (other.registers.read(UP, 4), other.registers.read(DOWN, 4)) == (1 << 24, 1 << 25)
    other.registers.write(EJECT, 4, 1 << 25)
    assert other.ejected == [25]
    with pytest.raises(DamagedError):
        other.registers.restore(machine.registers.state() | {"up": 1 << 32})


@given(st.lists(st.one_of(_HOST, _ACCESS), max_size=60))
def test_no_sequence_takes_what_was_not_asked_for(
    steps: Sequence[tuple[str, int] | tuple[str, int, int, int]],
) -> None:
    machine = Machine()
    asked: list[int] = []
    for step in steps:
        match step:
            case ("plugged", slot):
                machine.registers.plugged(slot)
            case ("ask_back", slot):
                asked.append(slot)
                machine.registers.ask_back(slot)
            case ("forget", slot):
                machine.registers.forget(slot)
            case ("read", offset, size, _):
                assert 0 <= machine.registers.read(offset, size) < 1 << 32
            case ("write", offset, size, value):
                machine.registers.write(offset, size, value & (1 << 8 * size) - 1)
    answered = machine.ejected + machine.refused
    assert all(answered.count(slot) <= asked.count(slot) for slot in answered)
    state = machine.registers.state()
    other = Machine()
    other.registers.restore(state)
    assert other.registers.state() == state


class Mapper:
    """Where every function's memory is; two may not be at the same place."""

    def __init__(self) -> None:
        self.places: dict[tuple[PciFunction, int], int] = {}

    def map(self, function: PciFunction, bar: int, address: int, size: int) -> bool:
        assert (function, bar) not in self.places
        self.places[function, bar] = address
        return True

    def unmap(self, function: PciFunction, bar: int) -> None:
        del self.places[function, bar]


def _function() -> PciFunction:
    function = PciFunction(PciIdentity(0x1AF4, 0x1042, 0x018000))
    function.add_bar(Bar(0, 0x4000))
    return function


def test_a_kept_slot_is_taken_by_name_alone() -> None:
    root = PciRoot(Mapper(), FIRST_KEPT)
    for slot in range(1, FIRST_KEPT):
        assert root.add(_function()) == slot
    with pytest.raises(ValueError, match="free"):
        root.add(_function())
    assert root.add(_function(), 30) == 30
    with pytest.raises(ValueError, match="30"):
        root.add(_function(), 30)


def test_what_is_pulled_out_answers_nowhere() -> None:
    mapper = Mapper()
    root = PciRoot(mapper, FIRST_KEPT)
    function = _function()
    root.add(function, 24)
    root.ecam.write(24 << 15 | 0x10, 4, 0xC0000000)
    root.ecam.write(24 << 15 | COMMAND, 2, COMMAND_MEMORY)
    assert mapper.places == {(function, 0): 0xC0000000}
    assert root.remove(24) is function
    assert mapper.places == {}
    assert root.ecam.read(24 << 15, 4) == 0xFFFFFFFF
    # An access that was under way as it was pulled out.
    function.write_config(0x10, 4, 0xC0010000)
    assert mapper.places == {}
    root.add(_function(), 24)
    assert root.ecam.read(24 << 15, 4) == 0x10421AF4


_GUEST_WRITE = st.tuples(
    st.just("write"),
    st.integers(FIRST_KEPT, 31),
    st.sampled_from((COMMAND, 0x10, 0x3C, 0x40)),
    st.sampled_from((0, COMMAND_MEMORY, 0xC0000000, 0xC0004000, 0xFFFFFFFF)),
)
_PLUGS = st.tuples(st.sampled_from(("add", "remove")), st.integers(FIRST_KEPT, 31))


@given(st.lists(st.one_of(_PLUGS, _GUEST_WRITE), max_size=80))
def test_any_sequence_of_plugs_leaves_the_bus_consistent(
    steps: Sequence[tuple[str, int] | tuple[str, int, int, int]],
) -> None:
    mapper = Mapper()
    root = PciRoot(mapper, FIRST_KEPT)
    for step in steps:
        match step:
            case ("add", slot) if slot not in root.functions:
                root.add(_function(), slot)
            case ("remove", slot) if slot in root.functions:
                root.remove(slot)
            case (_, slot, offset, value):
                root.ecam.write(slot << 15 | offset, 4, value)
        for slot in range(FIRST_KEPT, 32):
            there = slot in root.functions
            assert (root.ecam.read(slot << 15, 4) == 0x10421AF4) is there
        assert {function for function, _ in mapper.places} <= set(root.functions.values())
    for slot in set(root.functions) - {0}:
        root.remove(slot)
    assert mapper.places == {}
