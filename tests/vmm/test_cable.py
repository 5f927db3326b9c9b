"""Cards on taps as a machine's process has them, with vhost-net and without it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.devices.test_vhost_net import Kernel
from tests.taps import Namespace

from cerne.arch.x86 import layout
from cerne.devices.virtio.net.kernel import KernelNetDevice
from cerne.kvm.kvm import Kvm
from cerne.kvm.memory import GuestMemory
from cerne.units import MIB
from cerne.vmm.board import Board, GuestRequests
from cerne.vmm.cable import Cable
from cerne.vmm.config import BootConfig, LinkKind, NicConfig, VmmConfig
from cerne.vmm.loop import Loop
from cerne.vmm.peripherals import Peripherals

MakeNic = Callable[[], NicConfig]


@pytest.fixture
def make_nic(namespace: Namespace) -> MakeNic:
    """A card on the namespace's tap, with what stands for /dev/vhost-net."""

    def make() -> NicConfig:
        vhost = os.open("/dev/null", os.O_RDWR)
        return NicConfig("52:54:00:12:34:56", namespace.open_tap(), LinkKind.TAP, 1500, vhost)

    return make


def test_python_does_what_this_hosts_kernel_does_not(
    make_nic: MakeNic, capfd: pytest.CaptureFixture[str]
) -> None:
    nic = make_nic()
    cable = Cable(Loop(), nic)
    assert not isinstance(cable.card, KernelNetDevice)
    assert cable.card.wants_read
    assert "vhost-net is not used: VHOST_SET_OWNER failed" in capfd.readouterr().err
    assert nic.vhost is not None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(nic.vhost)
    cable.close()


@pytest.fixture
def devices(
    make_nic: MakeNic, kvm_device: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Peripherals, Kernel, MakeNic]]:
    """A machine's devices, one of them a card that the kernel serves, and that kernel."""
    with ExitStack() as stack:
        kvm = stack.enter_context(Kvm())
        memory = stack.enter_context(GuestMemory.anonymous(layout.memory_ranges(32 * MIB)))
        kernel = Kernel(memory)
        monkeypatch.setattr("cerne.kvm.vhost.ioctl", kernel.ioctl)
        wishes = GuestRequests(*[lambda *_: None] * 5)
        board = stack.enter_context(Board(kvm, memory, 1, wishes))
        config = VmmConfig(
            "m", "", 1, memory.size, BootConfig(0, None, ""), 0, 0, 0, (), 0, nics=(make_nic(),)
        )
        found = Peripherals(board, Loop(), config, lambda event, data: None)
        yield found, kernel, make_nic
        found.abandon()


def test_the_kernel_serves_a_card_while_its_machine_runs(
    devices: tuple[Peripherals, Kernel, MakeNic],
) -> None:
    peripherals, kernel, _ = devices
    (cable,) = peripherals._cables
    assert isinstance(cable.card, KernelNetDevice)
    transport = next(
        function
        for function in peripherals._pci._root.functions.values()
        if getattr(function, "device", None) is cable.card
    )
    for offset, size, value in _DRIVER:
        transport.write_bar(0, offset, size, value)
    assert [vring.tap for vring in kernel.vrings] == [None, None]
    peripherals.resume()
    assert [vring.tap for vring in kernel.vrings] == [cable.card.link.fileno()] * 2
    peripherals.pause()
    assert [vring.tap for vring in kernel.vrings] == [None, None]
    peripherals.state()


# A driver that takes virtio 1 alone, and two queues.
_DRIVER = (
    *((20, 1, 3), (8, 4, 1), (12, 4, 1), (20, 1, 11)),
    *((22, 2, 0), (24, 2, 16), (32, 8, 0x1000), (40, 8, 0x2000), (48, 8, 0x3000), (28, 2, 1)),
    *((22, 2, 1), (24, 2, 16), (32, 8, 0x4000), (40, 8, 0x5000), (48, 8, 0x6000), (28, 2, 1)),
    (20, 1, 15),
)
