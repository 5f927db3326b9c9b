"""Several vCPUs, and the host's side, at one device at once: nobody falls over another."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from tests.devices.pci_guest import Guest
from tests.devices.registry import VIRTIO

from cerne.devices.bus import BusDevice
from cerne.devices.i8042 import I8042
from cerne.devices.pci.function import PciFunction
from cerne.devices.pci.root import PciRoot
from cerne.devices.power import Power
from cerne.devices.rtc import Rtc
from cerne.devices.serial import Serial
from cerne.devices.virtio.device import VirtioDevice
from cerne.kvm.memory import GuestMemory

_STEPS = 3000


class _Line:
    def set(self, level: bool) -> None:
        """Leads nowhere."""


class _OneBus:
    """Where BARs lie, as strict as a machine's bus is."""

    def __init__(self) -> None:
        self.mapped: set[tuple[PciFunction, int]] = set()

    def map(self, function: PciFunction, bar: int, address: int, size: int) -> bool:
        assert (function, bar) not in self.mapped
        time.sleep(0)
        self.mapped.add((function, bar))
        return True

    def unmap(self, function: PciFunction, bar: int) -> None:
        time.sleep(0)
        self.mapped.remove((function, bar))


@pytest.fixture(autouse=True)
def _switching() -> Iterator[None]:
    """Threads change places as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def _together(*actions: Callable[[random.Random], None]) -> None:
    """Do each many times, all at once; what one raises is raised."""
    errors: list[BaseException] = []

    def run(seed: int, action: Callable[[random.Random], None]) -> None:
        numbers = random.Random(seed)
        try:
            for _ in range(_STEPS):
                action(numbers)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
            errors.append(error)

    threads = [
        threading.Thread(target=run, args=(seed, action)) for seed, action in enumerate(actions)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


PORTS: dict[str, tuple[Callable[[], BusDevice], list[int]]] = {
    "rtc": (Rtc, [0, 1]),
    "i8042": (lambda: I8042(lambda: None), [0, 4]),
    "power": (lambda: Power(_Line(), lambda: None, lambda: None), [0, 1, 2, 3]),
    "serial": (lambda: Serial(_Line(), lambda data: None), list(range(8))),
    "pci": (lambda: PciRoot(_OneBus()).ports, [0, 4]),
}


@pytest.mark.parametrize("name", PORTS)
def test_ports_are_used_by_two_processors_at_once(name: str) -> None:
    make, offsets = PORTS[name]
    device = make()

    def write(numbers: random.Random) -> None:
        size = 4 if name == "pci" else 1
        device.write(numbers.choice(offsets), size, numbers.choice((0, 4, 0x40, 0xAA, 0x80000800)))

    def read(numbers: random.Random) -> None:
        size = 4 if name == "pci" else 1
        assert 0 <= device.read(numbers.choice(offsets), size) < 1 << 32

    _together(write, read, read)


@pytest.mark.parametrize("kind", VIRTIO)
def test_registers_are_used_by_two_processors_at_once(
    kind: type[VirtioDevice], memory: GuestMemory
) -> None:
    guest = Guest(VIRTIO[kind](), memory)
    guest.start()

    def write(numbers: random.Random) -> None:
        guest.write(22, 2, numbers.choice((0, 1, 0xFFFF)))
        guest.write(20, 1, numbers.choice((0, 1, 3, 11, 15)))

    def read(numbers: random.Random) -> None:
        guest.read(numbers.randrange(60), numbers.choice((1, 2, 4, 8)))

    def kick(numbers: random.Random) -> None:
        guest.transport.kick(numbers.randrange(len(guest.queues)))

    _together(write, read, kick)


def test_a_bar_is_moved_by_two_processors_at_once(memory: GuestMemory) -> None:
    root = PciRoot(_OneBus())
    guest = Guest(next(iter(VIRTIO.values()))(), memory)
    slot = root.add(guest.transport)

    def move(numbers: random.Random) -> None:
        address = slot << 15 | numbers.choice((4, 16))
        root.write(address, 4, numbers.choice((0, 2, 0xC0000000, 0xC0010000)))

    _together(move, move)
