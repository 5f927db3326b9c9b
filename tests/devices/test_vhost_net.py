"""A card that vhost-net serves, over a stand-in for the kernel's side: it keeps the kernel's rules,
and moves frames between the rings that it was told of and a real tap."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from ctypes import c_uint64
from enum import IntEnum
from typing import cast

import pytest
from tests.devices.pci_guest import Guest
from tests.devices.queue_driver import Buffer
from tests.taps import GUEST_ADDRESS, HOST_ADDRESS, Namespace

from cerne.devices.virtio.net.header import Feature
from cerne.devices.virtio.net.kernel import KernelBackend, KernelNetDevice
from cerne.devices.virtio.net.tap import TapLink
from cerne.devices.virtio.queue import Queue
from cerne.errors import HostError, KvmError
from cerne.kvm._address import address_of
from cerne.kvm.memory import GuestMemory
from cerne.kvm.vhost import VhostNet
from cerne.kvm.vhost_abi import (
    VhostIoctl,
    vhost_vring_addr,
    vhost_vring_file,
    vhost_vring_state,
)

DATA = 0x80000
BUFFERS = 0x40000
MAC = bytes.fromhex("525400123456")
_VERSION_1 = 1 << 32
_RINGS = 1 << 28 | 1 << 29 | _VERSION_1
_REGION = struct.Struct("<QQQQ")


class Vring:
    """One queue, as the kernel knows it."""

    def __init__(self) -> None:
        self.size = 0
        self.base = 0
        self.kick = self.call = -1
        self.rings = (0, 0, 0)
        self.tap: int | None = None
        self.queue: Queue | None = None


class Kernel:
    """What stands in for vhost-net: `work` does what its thread would."""

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.features = int(_RINGS | Feature.MRG_RXBUF | 1 << 26 | 1 << 27)
        self.owned = False
        self.negotiated = 0
        self.start = 0
        self.vrings = (Vring(), Vring())
        self.refused: VhostIoctl | None = None
        self.said: list[str] = []

    def ioctl(self, descriptor: int, operation: IntEnum, argument: object = 0) -> int:
        """Answer as the kernel does."""
        assert isinstance(operation, VhostIoctl)
        self.said.append(operation.name)
        if operation is self.refused:
            raise KvmError(operation.name, errno.EIO)
        if operation is VhostIoctl.VHOST_SET_OWNER:
            self._require(not self.owned, operation, errno.EBUSY)
            self.owned = True
            return 0
        self._require(self.owned or "FEATURES" in operation.name, operation, errno.EPERM)
        answer = getattr(self, f"_{operation.name.lower()}")
        answer(operation, argument)
        return 0

    def _require(self, so: bool, operation: VhostIoctl, number: int) -> None:
        if not so:
            raise KvmError(operation.name, number)

    def _vhost_get_features(self, operation: VhostIoctl, argument: c_uint64) -> None:
        argument.value = self.features

    def _vhost_set_features(self, operation: VhostIoctl, argument: c_uint64) -> None:
        self._require(not argument.value & ~self.features, operation, errno.EOPNOTSUPP)
        assert all(vring.tap is None for vring in self.vrings)
        self.negotiated = argument.value

    def _vhost_set_mem_table(self, operation: VhostIoctl, argument: bytearray) -> None:
        assert struct.unpack_from("<II", argument) == (1, 0)
        guest, size, self.start, flags = _REGION.unpack_from(argument, 8)
        assert (guest, size, flags) == (0, self.memory.size, 0)
        assert self.start == address_of(self.memory.view(0, 1))

    def _vhost_set_vring_num(self, operation: VhostIoctl, argument: vhost_vring_state) -> None:
        self._idle(operation, argument.index).size = argument.num

    def _vhost_set_vring_base(self, operation: VhostIoctl, argument: vhost_vring_state) -> None:
        self._idle(operation, argument.index).base = argument.num

    def _vhost_get_vring_base(self, operation: VhostIoctl, argument: vhost_vring_state) -> None:
        argument.num = self._idle(operation, argument.index).base

    def _vhost_set_vring_addr(self, operation: VhostIoctl, argument: vhost_vring_addr) -> None:
        addresses = (argument.desc_user_addr, argument.avail_user_addr, argument.used_user_addr)
        guest = [address - self.start for address in addresses]
        self._idle(operation, argument.index).rings = (guest[0], guest[1], guest[2])

    def _vhost_set_vring_kick(self, operation: VhostIoctl, argument: vhost_vring_file) -> None:
        self.vrings[argument.index].kick = argument.fd

    def _vhost_set_vring_call(self, operation: VhostIoctl, argument: vhost_vring_file) -> None:
        self.vrings[argument.index].call = argument.fd

    def _vhost_net_set_backend(self, operation: VhostIoctl, argument: vhost_vring_file) -> None:
        vring = self.vrings[argument.index]
        if argument.fd == -1:
            assert vring.queue is not None
            vring.base = vring.queue.next_available
            vring.tap = vring.queue = None
            return
        queue = Queue(self.memory, 256)
        queue.size = vring.size
        queue.descriptors, queue.driver, queue.device = vring.rings
        queue.event_index = bool(self.negotiated & 1 << 29)
        queue.ready = True
        queue.take_back(vring.base)
        vring.tap, vring.queue = argument.fd, queue

    def _idle(self, operation: VhostIoctl, index: int) -> Vring:
        self._require(self.vrings[index].tap is None, operation, errno.EBUSY)
        return self.vrings[index]

    def work(self) -> None:
        """Serve each queue that was kicked, and what is readable on the tap."""
        for index, vring in enumerate(self.vrings):
            if vring.queue is None or vring.tap is None:
                continue
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(vring.kick)
            while (chain := vring.queue.pop()) is not None:
                try:
                    if index == 1:
                        os.writev(vring.tap, chain.readable)
                        vring.queue.push(chain.head, 0)
                    else:
                        vring.queue.push(chain.head, os.readv(vring.tap, chain.writable))
                except BlockingIOError:
                    vring.queue.put_back()
                    break
            vring.queue.enable_notification()
            if vring.queue.should_notify():
                os.eventfd_write(vring.call, 1)


class Rig:
    """A driver, the card and the kernel, on a namespace's tap."""

    def __init__(self, namespace: Namespace, memory: GuestMemory, kernel: Kernel) -> None:
        self.kernel = kernel
        self.link = TapLink(namespace.open_tap())
        backend = KernelBackend(VhostNet(os.open("/dev/null", os.O_RDWR)), self.link.fileno())
        self.device = KernelNetDevice(MAC, self.link, backend)
        flags = os.EFD_NONBLOCK | os.EFD_CLOEXEC
        self.bells = [os.eventfd(0, flags) for _ in range(3)]
        self.calls = {vector: os.eventfd(0, flags) for vector in range(5)}
        self.guest = Guest(self.device, memory, self.bells)
        self.guest.routes.calls = self.calls
        self.memory = memory

    def exchange(self) -> bytes:
        """Ask the host for its address by ARP; its answer, as it came."""
        receive, transmit = self.guest.queues[:2]
        self.memory.write(BUFFERS, bytes(64))
        head = receive.add([Buffer(BUFFERS, 2048, write=True)])
        addresses = (MAC, socket.inet_aton(GUEST_ADDRESS), bytes(6), socket.inet_aton(HOST_ADDRESS))
        request = b"\xff" * 6 + MAC + bytes.fromhex("08060001080006040001") + b"".join(addresses)
        self.memory.write(DATA, bytes(12) + request)
        transmit.add([Buffer(DATA, 12 + len(request))])
        self.guest.kick(1)
        self.kernel.work()
        assert len(transmit.take()) == 1
        assert select.select([self.link.fileno()], [], [], 5)[0], "no answer came"
        self.kernel.work()
        assert [given for given, _ in receive.take()] == [head]
        return self.memory.read(BUFFERS + 12, 42)

    def called(self, vector: int) -> bool:
        """Whether the driver was interrupted by a vector since the last question."""
        with contextlib.suppress(BlockingIOError):
            return os.eventfd_read(self.calls[vector]) > 0
        return False

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.link.close()
        self.device.close()
        for descriptor in (*self.bells, *self.calls.values()):
            os.close(descriptor)


MakeRig = Callable[[], Rig]


@pytest.fixture
def kernel(memory: GuestMemory, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel(memory)
    monkeypatch.setattr("cerne.kvm.vhost.ioctl", kernel.ioctl)
    return kernel


@pytest.fixture
def make_rig(namespace: Namespace, memory: GuestMemory, kernel: Kernel) -> Iterator[MakeRig]:
    with contextlib.ExitStack() as stack:

        def make() -> Rig:
            rig = Rig(namespace, memory, kernel)
            stack.callback(rig.close)
            return rig

        yield make


def _is_answer(frame: bytes) -> bool:
    return frame[:6] == MAC and frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\2"


def test_the_kernel_moves_frames_from_the_first_to_the_last(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.device.resume()
    rig.guest.start()
    # What goes over the tap is the tap's affair; of frames vhost knows mergeable buffers alone.
    assert rig.kernel.negotiated == _RINGS | Feature.MRG_RXBUF
    assert [vring.base for vring in rig.kernel.vrings] == [0, 0]
    assert not (rig.device.wants_read or rig.device.wants_write)
    assert _is_answer(rig.exchange())
    # Each queue has the vector of its number and one.
    assert (rig.called(1), rig.called(2)) == (True, True)
    rig.guest.write(20, 1, 0)
    assert [vring.tap for vring in rig.kernel.vrings] == [None, None]


def test_a_paused_machine_has_its_queues_and_goes_on_with_another_kernel(
    make_rig: MakeRig, kernel: Kernel
) -> None:
    rig = make_rig()
    rig.guest.start()
    # Started before its machine runs: nobody serves it yet.
    assert [vring.tap for vring in kernel.vrings] == [None, None]
    rig.device.resume()
    assert _is_answer(rig.exchange())
    rig.device.pause()
    assert [vring.tap for vring in kernel.vrings] == [None, None]
    saved = rig.guest.transport.state()
    queues = cast("list[dict[str, int]]", saved["queues"])
    assert [queue["next_available"] for queue in queues] == [1, 1, 0]
    assert [queue["next_used"] for queue in queues] == [1, 1, 0]
    rig.device.resume()
    assert _is_answer(rig.exchange())
    rig.device.pause()
    saved = rig.guest.transport.state()
    drivers = rig.guest.queues
    rig.link.close()
    kernel.owned = False
    other = make_rig()
    other.guest.queues = drivers
    other.guest.transport.restore(saved)
    assert other.guest.transport.state() == saved
    other.device.resume()
    assert [vring.base for vring in kernel.vrings] == [2, 2]
    assert _is_answer(other.exchange())


def test_another_vector_and_a_reset_of_a_queue_are_told(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.device.resume()
    rig.guest.start()
    rig.guest.write(22, 2, 0)
    rig.guest.write(26, 2, 0)
    assert rig.kernel.vrings[0].call == rig.calls[0]
    rig.guest.write(58, 2, 1)
    assert rig.kernel.vrings[0].tap is None
    assert rig.kernel.vrings[1].tap is not None
    driver = rig.guest.queues[0]
    driver.offered = driver.taken = 0
    rig.memory.write(driver.available, bytes(6 + 2 * 16))
    rig.memory.write(driver.used, bytes(6 + 8 * 16))
    rig.guest.write(24, 2, 16)
    for at, address in ((32, driver.descriptors), (40, driver.available), (48, driver.used)):
        rig.guest.write(at, 8, address)
    rig.guest.write(28, 2, 1)
    assert _is_answer(rig.exchange())


def test_commands_are_still_obeyed_here(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.device.resume()
    rig.guest.start()
    rig.memory.write(DATA, b"\1\1\x52\x54\0\0\0\7")
    rig.guest.queues[2].add([Buffer(DATA, 8), Buffer(DATA + 0x100, 1, write=True)])
    rig.guest.kick(2)
    assert rig.guest.queues[2].take() == [(0, 1)]
    assert (rig.memory.read(DATA + 0x100, 1), rig.guest.read(0x2005, 1)) == (b"\0", 7)


def test_a_kernel_that_refuses_is_a_cable_that_was_pulled(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.kernel.refused = VhostIoctl.VHOST_NET_SET_BACKEND
    rig.device.resume()
    rig.guest.start()
    assert rig.guest.read(0x2006, 2) == 0
    rig.guest.write(20, 1, 0)
    assert rig.guest.read(20, 1) == 0


def test_a_kernel_without_virtio_1_is_of_no_use(make_rig: MakeRig, kernel: Kernel) -> None:
    kernel.features = 1 << 28
    with pytest.raises(HostError, match="virtio 1"):
        make_rig()


def test_an_older_kernel_merges_no_buffers(make_rig: MakeRig, kernel: Kernel) -> None:
    kernel.features &= ~Feature.MRG_RXBUF
    rig = make_rig()
    assert not rig.device.features & Feature.MRG_RXBUF
    rig.device.resume()
    rig.guest.start()
    assert _is_answer(rig.exchange())
