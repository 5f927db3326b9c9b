"""A reset by the host's side: whatever the guest did to its devices, they are as they were."""

from __future__ import annotations

import random

from tests.descriptors import open_descriptors
from tests.vmm.test_hotplug import Bench, bench, disk

from cerne.arch.x86 import layout
from cerne.devices.pci.function import COMMAND, COMMAND_MEMORY
from cerne.devices.virtio.transport import TABLE
from cerne.kvm.abi import Irqchip

__all__ = ["bench", "disk"]

_MSIX = 0x11
_SLOTS = (1, 5)


def _let_the_guest_work(bench: Bench, seed: int) -> None:
    """Place memory, route interrupts, begin with drivers, and write here and there."""
    numbers = random.Random(seed)
    memory, ports = bench.board.buses.memory, bench.board.buses.ports
    for slot in _SLOTS:
        bench.configure(slot, COMMAND, COMMAND_MEMORY)
        bench.configure(slot, bench.capability(slot, _MSIX), 1 << 31)
        bar = bench.read(slot, 0x10) & ~0xF
        for vector in range(2):
            for offset, value in ((0, 0xFEE00000), (8, 0x41 + vector), (12, 0)):
                memory.write(bar + TABLE + 16 * vector + offset, 4, value)
        for status in (1, 3, 11):
            memory.write(bar + 20, 1, status)
        for _ in range(100):
            memory.write(bar + numbers.randrange(0x40), 4, numbers.getrandbits(32))
        for _ in range(100):
            bench.configure(slot, 4 * numbers.randrange(64), numbers.getrandbits(32))
    for port in (0x3F8, 0x3F9, 0x3FA, 0x3FB, 0x3FC, 0x3FF, 0x70, 0x71, 0x64, 0xCF8):
        ports.write(port, 4 if port == 0xCF8 else 1, numbers.getrandbits(8))
    bench.board.memory.write(0x5000, b"of the life before")
    bench.board.power.signal(1)


def _cycle(bench: Bench) -> None:
    bench.devices.power_off()
    bench.board.power_on()
    bench.devices.power_on()


def test_nothing_of_the_life_before_is_left(bench: Bench) -> None:
    bench.disk(5)
    with bench.nic(1):
        _cycle(bench)
        fixed, devices = bench.board._devices_state(), bench.devices.state()
        chips = [bytes(bench.board.vm.get_irqchip(chip)) for chip in Irqchip]
        routed = len(bench.board.buses.memory._map[1])
        for seed in range(5):
            _let_the_guest_work(bench, seed)
            assert bench.devices.state() != devices
            _cycle(bench)
            assert bench.devices.state() == devices
            assert bench.board._devices_state() == fixed
            assert [bytes(bench.board.vm.get_irqchip(chip)) for chip in Irqchip] == chips
            assert len(bench.board.buses.memory._map[1]) == routed
            assert bench.board.memory.read(0x5000, 18) == bytes(18)


def test_what_the_guest_was_asked_for_goes_as_it_begins_anew(bench: Bench) -> None:
    bench.disk(5)
    with bench.nic(1):
        bench.devices.slots.ask_back(5)
        _let_the_guest_work(bench, 0)
        _cycle(bench)
        assert bench.events == ["DEVICE_DELETED hot5"]
        assert bench.devices.slots.taken == [1]
        _cycle(bench)
        assert bench.events == ["DEVICE_DELETED hot5"]


def test_a_cycle_keeps_no_descriptor(bench: Bench) -> None:
    bench.disk(5)
    with bench.nic(1):
        _let_the_guest_work(bench, 0)
        _cycle(bench)
        before = open_descriptors()
        for seed in range(20):
            _let_the_guest_work(bench, seed)
            _cycle(bench)
        assert open_descriptors() == before


def test_what_was_plugged_in_is_found_where_firmware_would_put_it(bench: Bench) -> None:
    bench.disk(5)
    place = bench.read(5, 0x10)
    bench.configure(5, 0x10, 0xD0000000)
    _cycle(bench)
    assert bench.read(5, 0x10) == place
    assert bench.read(5, 0) != 0xFFFFFFFF
    assert layout.PCI_WINDOW_START <= place & ~0xF < layout.PCI_WINDOW_END
