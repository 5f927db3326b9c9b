"""PCI configuration space, its two ways of access, moving BARs, and MSI-X."""

from __future__ import annotations

import random

import pytest

from cerne.devices.pci.function import Bar, PciFunction, PciIdentity
from cerne.devices.pci.msix import MsixTable
from cerne.devices.pci.root import PciRoot
from cerne.errors import DamagedError

PLACE = 0xE0000000
TAKEN = 0xD0000000


class Mapper:
    """Where each BAR is."""

    def __init__(self) -> None:
        self.places: dict[int, tuple[int, int]] = {}

    def map(self, function: PciFunction, bar: int, address: int, size: int) -> bool:
        assert bar not in self.places
        if address == TAKEN:
            return False
        self.places[bar] = (address, size)
        return True

    def unmap(self, function: PciFunction, bar: int) -> None:
        del self.places[bar]


class Routes:
    """Messages and triggers, in order."""

    def __init__(self) -> None:
        self.routes: dict[int, tuple[int, int, bool]] = {}
        self.triggered: list[int] = []

    def set_route(self, vector: int, address: int, data: int, masked: bool) -> None:
        self.routes[vector] = (address, data, masked)

    def trigger(self, vector: int) -> None:
        self.triggered.append(vector)

    def eventfd(self, vector: int) -> int:
        return vector


@pytest.fixture
def mapper() -> Mapper:
    return Mapper()


@pytest.fixture
def function() -> PciFunction:
    function = PciFunction(PciIdentity(0x1AF4, 0x1042, 0x018000, 1, 0x1AF4, 0x1042))
    function.add_bar(Bar(0, 0x4000))
    function.add_bar(Bar(2, 1 << 33, wide=True, prefetchable=True))
    return function


@pytest.fixture
def root(mapper: Mapper, function: PciFunction) -> PciRoot:
    root = PciRoot(mapper)
    assert root.add(function) == 1
    return root


def select(root: PciRoot, register: int, slot: int = 1) -> None:
    root.ports.write(0, 4, 1 << 31 | slot << 11 | register)


def test_both_ways_reach_the_same_space(root: PciRoot) -> None:
    select(root, 0)
    assert root.ports.read(4, 4) == 0x10421AF4
    assert root.ports.read(6, 2) == 0x1042
    assert root.ecam.read(1 << 15, 4) == 0x10421AF4
    assert root.ecam.read(1 << 15 | 8, 8) == 0x01800001
    root.ecam.write(1 << 15 | 0x3C, 1, 11)
    select(root, 0x3C)
    assert root.ports.read(4, 1) == 11


def test_what_is_not_there_reads_as_ones(root: PciRoot) -> None:
    select(root, 0, slot=5)
    assert root.ports.read(4, 4) == 0xFFFFFFFF
    assert root.ecam.read(1 << 15 | 1 << 12, 2) == 0xFFFF
    assert root.ecam.read(1 << 15 | 0x100, 4) == 0xFFFFFFFF
    root.ports.write(0, 4, 0)
    assert root.ports.read(4, 4) == 0xFFFFFFFF


def test_bars_tell_their_size_and_move(
    root: PciRoot, function: PciFunction, mapper: Mapper
) -> None:
    function.write_config(0x10, 4, 0xFFFFFFFF)
    assert function.read_config(0x10, 4) == 0xFFFFC000
    function.write_config(0x18, 4, 0xFFFFFFFF)
    function.write_config(0x1C, 4, 0xFFFFFFFF)
    assert function.read_config(0x18, 4) == 0x0000000C
    assert function.read_config(0x1C, 4) == 0xFFFFFFFE
    function.write_config(4, 2, 2)
    assert mapper.places == {}
    function.write_config(0x10, 4, PLACE + 0x123)
    function.write_config(0x1C, 4, 4)
    function.write_config(0x18, 4, 0)
    assert mapper.places == {0: (PLACE, 0x4000), 2: (4 << 32, 1 << 33)}
    function.place(0, PLACE + 0x4000)
    assert mapper.places[0] == (PLACE + 0x4000, 0x4000)
    state = function.config_state()
    function.power_on()
    assert mapper.places == {}
    function.restore_config(state)
    assert (function.config_state(), len(mapper.places)) == (state, 2)


def test_a_bar_that_would_lie_on_something_else_is_nowhere(
    function: PciFunction, root: PciRoot, mapper: Mapper
) -> None:
    function.place(0, PLACE)
    function.write_config(4, 2, 2)
    function.write_config(0x10, 4, TAKEN)
    assert mapper.places == {}
    function.write_config(0x10, 4, PLACE)
    assert mapper.places == {0: (PLACE, 0x4000)}


def test_random_writes_keep_what_is_fixed(root: PciRoot, function: PciFunction) -> None:
    numbers = random.Random(3)
    fixed = [function.read_config(offset, 4) for offset in (0, 8, 0x2C, 0x34)]
    for _ in range(3000):
        size = numbers.choice((1, 2, 4))
        root.ports.write(0, 4, numbers.getrandbits(32))
        select(root, numbers.randrange(256))
        root.ports.write(numbers.randrange(8), size, numbers.getrandbits(8 * size))
        address, width = numbers.randrange(1 << 20), numbers.choice((1, 2, 4, 8))
        root.ecam.write(address, width, numbers.getrandbits(8 * width))
        assert 0 <= root.ecam.read(address, width) < 1 << 8 * width
    assert [function.read_config(offset, 4) for offset in (0, 8, 0x2C, 0x34)] == fixed


def test_overlapping_bars_are_a_mistake_of_ours(function: PciFunction) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        function.add_bar(Bar(3, 0x1000))


def msix(function: PciFunction, routes: Routes) -> tuple[MsixTable, int]:
    table = MsixTable(3, routes)
    table.add_to(function, 0, 0x1000, 0x2000)
    return table, function.read_config(0x34, 1) + 2


def test_a_masked_message_waits(function: PciFunction) -> None:
    routes = Routes()
    table, control = msix(function, routes)
    table.trigger(1)
    function.write_config(control, 2, 1 << 15)
    table.control_written()
    assert function.read_config(control, 2) == 1 << 15 | 2
    table.write_table(16, 8, 0xFEE00000)
    table.write_table(24, 4, 0x41)
    table.trigger(1)
    assert (routes.triggered, table.read_pending(0, 8)) == ([], 2)
    table.write_table(28, 4, 0)
    assert (routes.triggered, table.read_pending(0, 8)) == ([1], 0)
    assert routes.routes[1] == (0xFEE00000, 0x41, False)
    function.write_config(control, 2, 1 << 15 | 1 << 14)
    table.control_written()
    table.trigger(1)
    saved = table.state()
    other_routes = Routes()
    other, _ = msix(PciFunction(PciIdentity(1, 2, 3)), other_routes)
    other.restore(saved)
    assert other.state() == saved
    function.write_config(control, 2, 1 << 15)
    table.control_written()
    assert routes.triggered == [1, 1]


def test_vectors_that_are_not_there_are_ignored(function: PciFunction) -> None:
    routes = Routes()
    table, _ = msix(function, routes)
    for vector in (-1, 3, 0xFFFF):
        table.trigger(vector)
    table.write_table(48, 4, 1)
    table.write_table(1, 4, 1)
    assert (routes.triggered, routes.routes, table.read_table(48, 4)) == ([], {}, 0)
    with pytest.raises(DamagedError):
        table.restore({"table": "00", "pending": "0"})
    with pytest.raises(DamagedError):
        table.restore(table.state() | {"pending": "x"})
