"""The fixed devices of a board: bus, serial port, clock, keyboard controller, power."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cerne.devices import power as power_registers
from cerne.devices.bus import Bus, OverlapError
from cerne.devices.i8042 import I8042
from cerne.devices.power import Power
from cerne.devices.rtc import Rtc
from cerne.devices.serial import (
    DATA,
    INTERRUPT_ENABLE,
    INTERRUPT_ID,
    LINE_CONTROL,
    LINE_STATUS,
    MODEM_CONTROL,
    MODEM_STATUS,
    REGISTERS,
    SCRATCH,
    Serial,
)


class _Line:
    _level = False

    def set(self, level: bool) -> None:
        self._level = level

    def is_up(self) -> bool:
        return self._level


class _Memory:
    """A bus device that remembers."""

    def __init__(self) -> None:
        self.written: list[tuple[int, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        return offset

    def write(self, offset: int, size: int, value: int) -> None:
        self.written.append((offset, size, value))


def test_a_bus_finds_what_answers() -> None:
    bus, low, high = Bus(), _Memory(), _Memory()
    bus.insert(0x1000, 0x10, high)
    bus.insert(0x100, 0x10, low)
    assert (bus.read(0x105, 1), bus.read(0x100F, 1)) == (5, 15)
    bus.write(0x1004, 4, 7)
    assert high.written == [(4, 4, 7)]
    assert bus.read(0x110, 2) == 0xFFFF
    assert bus.read(0x10E, 4) == 0xFFFF_FFFF
    assert bus.read(0, 1) == 0xFF
    bus.write(0x50, 1, 1)
    bus.remove(0x1000)
    assert bus.read(0x1000, 1) == 0xFF


@pytest.mark.parametrize(("base", "size"), [(0x100, 1), (0xFF, 2), (0x10F, 4), (0, 0x1000)])
def test_ranges_do_not_overlap(base: int, size: int) -> None:
    bus = Bus()
    bus.insert(0x100, 0x10, _Memory())
    with pytest.raises(OverlapError, match="0x100 to 0x10f"):
        bus.insert(base, size, _Memory())


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(1, 20)), max_size=20))
def test_a_bus_is_as_a_list_would_be(ranges: list[tuple[int, int]]) -> None:
    bus, taken = Bus(), dict[int, int]()
    for base, size in ranges:
        addresses = range(base, base + size)
        if any(address in taken for address in addresses):
            with pytest.raises(OverlapError):
                bus.insert(base, size, _Memory())
        else:
            bus.insert(base, size, _Memory())
            taken |= {address: address - base for address in addresses}
    for address in range(240):
        assert bus.read(address, 1) == taken.get(address, 0xFF)


@pytest.fixture
def line() -> _Line:
    return _Line()


def test_a_serial_port_writes_and_reads(line: _Line) -> None:
    out: list[bytes] = []
    serial = Serial(line, out.append)
    for byte in b"hi":
        serial.write(DATA, 1, byte)
    assert b"".join(out) == b"hi"
    assert serial.read(LINE_STATUS, 1) == 0x60
    assert serial.feed(b"ab") == 2
    assert serial.read(LINE_STATUS, 1) == 0x61
    assert [serial.read(DATA, 1), serial.read(DATA, 1), serial.read(DATA, 1)] == [97, 98, 0]


def test_a_serial_port_interrupts(line: _Line) -> None:
    serial = Serial(line, lambda data: None)
    serial.feed(b"x")
    assert not line.is_up()
    serial.write(INTERRUPT_ENABLE, 1, 1)
    assert line.is_up()
    assert serial.read(INTERRUPT_ID, 1) == 4
    serial.read(DATA, 1)
    assert not line.is_up()
    serial.write(INTERRUPT_ENABLE, 1, 2)
    assert line.is_up()
    assert serial.read(INTERRUPT_ID, 1) == 2
    assert not line.is_up()
    serial.write(DATA, 1, 65)
    assert line.is_up()


def test_a_serial_port_keeps_its_divisor_and_scratch(line: _Line) -> None:
    serial = Serial(line, lambda data: pytest.fail("the divisor went out as data"))
    serial.write(LINE_CONTROL, 1, 0x83)
    serial.write(DATA, 1, 0x01)
    serial.write(INTERRUPT_ENABLE, 1, 0x02)
    assert (serial.read(DATA, 1), serial.read(INTERRUPT_ENABLE, 1)) == (1, 2)
    serial.write(LINE_CONTROL, 1, 0x03)
    assert serial.read(INTERRUPT_ENABLE, 1) == 0
    serial.write(SCRATCH, 1, 0x5A)
    assert serial.read(SCRATCH, 1) == 0x5A


def test_a_serial_port_loops_back(line: _Line) -> None:
    serial = Serial(line, lambda data: pytest.fail("looped bytes went out"))
    serial.write(MODEM_CONTROL, 1, 0x1F)
    assert serial.read(MODEM_STATUS, 1) == 0xF0
    serial.write(DATA, 1, 0x41)
    assert serial.read(DATA, 1) == 0x41
    for _ in range(40):
        serial.write(DATA, 1, 0)
    assert serial.read(LINE_STATUS, 1) & 2


def test_a_guest_that_does_not_read_costs_bounded_memory(line: _Line) -> None:
    serial = Serial(line, lambda data: None)
    assert serial.feed(bytes(1 << 20)) == 64 * 1024
    assert serial.feed(b"x") == 0


@given(st.lists(st.tuples(st.integers(0, REGISTERS - 1), st.booleans(), st.integers(0, 255))))
def test_a_serial_port_survives_any_accesses(accesses: list[tuple[int, bool, int]]) -> None:
    serial = Serial(_Line(), lambda data: None)
    for offset, is_write, value in accesses:
        if is_write:
            serial.write(offset, 1, value)
        else:
            assert 0 <= serial.read(offset, 1) <= 255


def test_a_clock_tells_the_time() -> None:
    rtc = Rtc(lambda: 1_795_531_328.0)  # 2026-11-24 14:42:08 UTC
    told = []
    for index in (0, 2, 4, 7, 8, 9, 0x32):
        rtc.write(0, 1, index)
        told.append(rtc.read(1, 1))
    assert told == [0x08, 0x42, 0x14, 0x24, 0x11, 0x26, 0x20]
    rtc.write(0, 1, 0x40)
    rtc.write(1, 1, 0x77)
    assert rtc.read(1, 1) == 0x77
    rtc.write(0, 1, 0xD)
    assert rtc.read(1, 1) == 0x80


def test_a_keyboard_controller_resets() -> None:
    asked: list[str] = []
    controller = I8042(lambda: asked.append("reset"))
    controller.write(0, 1, 0xFE)
    assert asked == []
    controller.write(4, 1, 0xFE)
    assert asked == ["reset"]
    controller.write(4, 1, 0xAA)
    assert (controller.read(4, 1), controller.read(0, 1), controller.read(4, 1)) == (1, 0x55, 0)


def test_power(line: _Line) -> None:
    asked: list[str] = []
    power = Power(line, lambda: asked.append("off"), lambda: asked.append("reset"))
    power.write(power_registers.SLEEP_CONTROL, 1, 5 << 2)
    power.write(power_registers.SLEEP_CONTROL, 1, 3 << 2 | 1 << 5)
    assert asked == []
    power.write(power_registers.SLEEP_CONTROL, 1, 5 << 2 | 1 << 5)
    power.write(power_registers.RESET, 1, 1)
    assert asked == ["off", "reset"]
    power.signal(power_registers.POWER_BUTTON)
    assert line.is_up()
    assert power.read(power_registers.EVENTS, 1) == power_registers.POWER_BUTTON
    assert (line.is_up(), power.read(power_registers.EVENTS, 1)) == (False, 0)
