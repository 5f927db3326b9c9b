"""What is fuzzed: each takes any bytes, and raises nothing but what it is to raise.

`test_targets.py` runs them by hypothesis and over the kept corpus; `python -m tests.fuzz.run` runs
one by atheris (`make fuzz`).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import socket
import struct
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.devices.pci_guest import Guest
from tests.devices.queue_driver import INDIRECT, NEXT, WRITE, QueueDriver
from tests.fuzz.cursor import Cursor
from tests.fuzz.hostile import FUZZED, Hostile

from cerne.arch.x86.kernel import load_initrd, load_kernel
from cerne.devices.block.chain import open_chain
from cerne.devices.cpu_hotplug import CpuHotplug
from cerne.devices.i8042 import I8042
from cerne.devices.pci.function import Bar, PciFunction, PciIdentity
from cerne.devices.pci.hotplug import PciHotplug
from cerne.devices.pci.root import ECAM_BUS_SIZE, PciRoot
from cerne.devices.power import Power
from cerne.devices.rtc import Rtc
from cerne.devices.serial import Serial
from cerne.devices.state import SavedState
from cerne.devices.vhost_user.front_end import FrontEnd
from cerne.devices.vhost_user.messages import BackendError
from cerne.devices.virtio.queue import Queue, QueueError
from cerne.devices.virtio.rng import RngDevice
from cerne.errors import DamagedError, GuestError, ImageError, InputError
from cerne.guest.wire import Decoder, Entry, readable
from cerne.images.manifest import decoded
from cerne.kvm.memory import GuestAddress, GuestMemory
from cerne.manager.snapshots.archive import Reader
from cerne.manager.snapshots.manifest import read_manifest
from cerne.manager.snapshots.outside import strange_manifest
from cerne.units import MIB
from cerne.vmm.config import VmmConfig
from cerne.vmm.loop import Loop
from cerne.vmm.processor_state import vcpu_state, vm_state
from cerne.vmm.qmp import Command, QmpServer
from cerne.vmm.snapshot import read_state
from cerne.vmm.upgrade import FORMAT

_TABLE = 0x8000
_SMALL = GuestMemory.anonymous([(GuestAddress(0), 1 << 16)])
_MACHINE = GuestMemory.anonymous([(GuestAddress(0), 8 * MIB)])


class _Line:
    def set(self, level: bool) -> None:
        """Leads nowhere."""


def _descriptor(cursor: Cursor, table: int) -> bytes:
    """One that is likely to lead on, or to be refused for one reason alone."""
    kind, near = cursor.number(1), cursor.number(1)
    address = cursor.number(8) if kind == 0xFF else (_TABLE, table, 0x9000, 0xFFFF)[near % 4] + kind
    address -= kind if near % 8 < 2 else 0
    length = cursor.choice((1, 16, 32, 256, 0, 0xFFFF_FFFF))
    flags = cursor.choice((0, NEXT, NEXT, WRITE, NEXT | WRITE, INDIRECT, INDIRECT, 0xFFFF))
    return struct.pack("<QIHH", address & (1 << 64) - 1, length, flags, near % 18)


def queue(data: bytes) -> None:
    """Any rings at all, in a small memory that is all the driver's."""
    cursor = Cursor(data)
    _SMALL.view(0, 1 << 16)[:] = bytes(1 << 16)
    under_test = Queue(_SMALL, 16)
    driver = QueueDriver(_SMALL, cursor.choice((0, 0x1000, 0xF000)), cursor.choice((1, 2, 8, 16)))
    under_test.indirect = bool(cursor.number(1) % 4)
    under_test.event_index = bool(cursor.number(1) % 2)
    with contextlib.suppress(QueueError):
        driver.set_up(under_test)
        for table in (driver.descriptors, _TABLE):
            for index in range(driver.size):
                _SMALL.write(table + 16 * index, _descriptor(cursor, table))
        for _ in range(cursor.number(1) % (driver.size + 1)):
            driver.offer(cursor.number(1) % 18)
        if cursor.number(1) == 0xFF:
            _SMALL.write(cursor.choice((driver.available, driver.used)), cursor.take(64))
        for _ in range(2 * driver.size):
            chain = under_test.pop()
            if chain is None:
                break
            assert len(chain.readable) + len(chain.writable) <= driver.size
            for view in chain.writable:
                view[:] = bytes(len(view))
            under_test.push(chain.head, chain.writable_size & 0xFFFF_FFFF)
            under_test.should_notify()
            under_test.enable_notification()
    state = under_test.state()
    under_test.restore(state)
    assert under_test.state() == state


class _Places:
    """Where BARs are; two are never in one place."""

    def __init__(self) -> None:
        self._taken: dict[tuple[PciFunction, int], range] = {}

    def map(self, function: PciFunction, bar: int, address: int, size: int) -> bool:
        wanted = range(address, address + size)
        if any(each.start < wanted.stop and wanted.start < each.stop for each in self._values()):
            return False
        assert (function, bar) not in self._taken
        self._taken[function, bar] = wanted
        return True

    def unmap(self, function: PciFunction, bar: int) -> None:
        del self._taken[function, bar]

    def _values(self) -> list[range]:
        return list(self._taken.values())


def pci(data: bytes) -> None:
    """Configuration by both ways, MSI-X and BARs of three functions."""
    cursor = Cursor(data)
    root = PciRoot(_Places())
    plain = PciFunction(PciIdentity(1, 2, 3))
    plain.add_bar(Bar(0, 0x1000))
    plain.add_bar(Bar(2, 1 << 33, wide=True))
    virtio = Guest(RngDevice(), _SMALL).transport
    for function in (plain, virtio, Guest(RngDevice(), _SMALL).transport):
        root.add(function)
    while cursor.left:
        way, size = cursor.number(1), cursor.choice((1, 2, 4, 8))
        value = cursor.number(size)
        if way % 4 == 0:
            offset = way >> 2 & 7
            root.ports.write(offset, min(size, 4), value & 0xFFFF_FFFF)
            assert 0 <= root.ports.read(offset, min(size, 4)) < 1 << 32
        elif way % 4 < 3:
            slot = way >> 2 & 3
            address = min(slot << 15 | cursor.number(2) & 0x10FF, ECAM_BUS_SIZE - size)
            root.ecam.write(address, size, value)
            assert 0 <= root.ecam.read(address, size) < 1 << 8 * size
        else:
            offset = min(cursor.number(2), 0x10000 - size)
            virtio.write_bar(0, offset, size, value)
            assert 0 <= virtio.read_bar(0, offset, size) < 1 << 8 * size
    state = virtio.state()
    virtio.restore(state)
    assert virtio.state() == state


def ports(data: bytes) -> None:
    """The fixed devices, register by register."""
    cursor = Cursor(data)
    devices = (
        Serial(_Line(), lambda written: None),
        Rtc(),
        I8042(lambda: None),
        Power(_Line(), lambda: None, lambda: None),
        slots := PciHotplug(lambda: None, lambda slot: None, lambda slot: None),
        CpuHotplug(2),
    )
    slots.ask_back(30)
    while cursor.left:
        chosen = cursor.number(1)
        device, size = devices[chosen % len(devices)], (1, 2, 4)[cursor.number(1) % 3]
        offset = chosen // len(devices) % (2 if isinstance(device, Rtc) else 4)
        if isinstance(device, PciHotplug | CpuHotplug):
            offset *= 4
        device.write(offset, size, cursor.number(size))
        assert 0 <= device.read(offset, size) < 1 << 8 * size
        if isinstance(device, Serial):
            device.feed(cursor.take(1))
    for device in devices:
        device.restore(device.state())


@contextlib.contextmanager
def _file(content: bytes) -> Iterator[int]:
    descriptor = os.memfd_create("fuzzed")
    try:
        os.write(descriptor, content)
        yield descriptor
    finally:
        os.close(descriptor)


def agent(data: bytes) -> None:
    """What a guest's agent says, in pieces."""
    decoder = Decoder()
    half = len(data) // 2
    with contextlib.suppress(GuestError):
        for piece in (data[:half], data[half:]):
            decoder.feed(piece)
            while (frame := decoder.next()) is not None:
                assert readable(frame.payload).isprintable()
                with contextlib.suppress(GuestError):
                    entry = Entry.unpack(frame.payload)
                    assert Entry.unpack(entry.pack()) == entry


def backend(data: bytes) -> None:
    """What a process that serves a device answers, before it goes."""
    near, far = socket.socketpair()
    with near, far, contextlib.suppress(BackendError):
        far.sendall(data)
        far.shutdown(socket.SHUT_WR)
        front = FrontEnd(near)
        assert len(front.config(60)) == 60
        with contextlib.suppress(BackendError):
            made = front.new_inflight(2, 16)
            assert made is None, "no file was sent"
        with contextlib.suppress(BackendError):
            front.stop(0)


def kernel(data: bytes) -> None:
    """A file that claims to be a kernel, and is loaded with an initrd."""
    with _file(data) as descriptor, contextlib.suppress(ImageError):
        loaded = load_kernel(_MACHINE, descriptor)
        assert MIB <= loaded.entry < 8 * MIB
        with _file(b"initrd") as initrd:
            load_initrd(_MACHINE, initrd, loaded)


def qcow2(data: bytes) -> None:
    """A file that claims to be a qcow2 disk: read, written, wiped and closed."""
    cursor = Cursor(data)
    plan = cursor.take(16)
    descriptor = os.memfd_create("fuzzed")
    os.write(descriptor, cursor.rest())
    files = [(descriptor, "qcow2")]
    if plan[:1] and plan[0] % 2:
        files.append((os.memfd_create("backing"), "raw"))
    try:
        disk = open_chain(files, read_only=bool(plan[0] & 2) if plan else False)
    except ImageError:
        for opened, _ in files:
            with contextlib.suppress(OSError):
                os.close(opened)
        return
    steps = Cursor(plan[1:])
    buffer = bytearray(3000)
    with contextlib.suppress(OSError):
        while steps.left:
            step = steps.number(1)
            length = min(disk.size, 1 + 500 * (step >> 5))
            offset = steps.number(2) * 251 % (disk.size - length + 1)
            if step % 4 == 0:
                disk.read(offset, [memoryview(buffer)[:length]])
            elif step % 4 == 1:
                disk.write(offset, [memoryview(buffer)[:length]])
            elif step % 4 == 2:
                disk.discard(offset, length)
            else:
                disk.write_zeroes(offset, length, unmap=bool(step & 4))
    with contextlib.suppress(OSError):
        disk.close()


def state(data: bytes) -> None:
    """A file that claims to be a saved machine, and what is read from it."""
    digest = hashlib.sha256(data).digest()
    header = struct.pack("<8sIIQ32s", b"CERNEVM\0", FORMAT, 62, len(data), digest)
    for content in (header + data, data):
        with _file(content) as descriptor, contextlib.suppress(DamagedError):
            read = SavedState("a machine", read_state(descriptor))
            for parse in (vcpu_state, vm_state, partial(VmmConfig.from_saved, descriptors=int)):
                with contextlib.suppress(DamagedError):
                    parse(read)


def config(data: bytes) -> None:
    """A file that claims to be a machine's configuration."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "config"
        path.write_bytes(data)
        with contextlib.suppress(DamagedError):
            VmmConfig.read(path)


def _send(client: socket.socket, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, BlockingIOError):
        client.send(data)


def qmp(data: bytes) -> None:
    """What somebody writes to the control socket, in pieces."""
    commands: dict[str, Command] = {
        "query-status": lambda _: {"status": "running"},
        "read": lambda request: request.arguments.text("what", 10),
        "open": lambda request: request.descriptor(request.arguments.integer("fd", 10)),
    }
    loop = Loop()
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as client:
        path = f"{directory}/qmp"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        server = QmpServer(loop, listener, commands, frozenset((os.geteuid(),)))
        client.connect(path)
        client.setblocking(False)
        half = len(data) // 2
        turns: list[Callable[[], None]] = [
            lambda: None,
            lambda: _send(client, data[:half]),
            lambda: None,
            lambda: _send(client, data[half:]),
            lambda: None,
            loop.stop,
        ]

        def next_turn() -> None:
            turns.pop(0)()
            if turns:
                loop.after(0, next_turn)

        loop.after(0, next_turn)
        loop.run()
        server.close()
    loop.close()


def _device(kind: type, data: bytes) -> None:
    Hostile(kind, data).run()


def archive(data: bytes) -> None:
    """An archive of a snapshot: its headers and its index, as they are or with a right digest."""
    cursor = Cursor(data)
    whole = bool(cursor.number(1) & 1)
    rest = cursor.rest()
    source = io.BytesIO(_archive(rest) if whole else rest)
    # A file system need not take a sparse file of the size that is announced.
    with tempfile.TemporaryDirectory() as place, contextlib.suppress(DamagedError, OSError):
        Reader(source, "fuzz").extract(
            lambda name: Path(place, name.replace("/", "-")), lambda _done, _all: None
        )


def _archive(index: bytes) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.GNU_FORMAT) as tar:
        digest = hashlib.sha256(index).hexdigest().encode()
        for name, content in (("index.json", index), ("index.sha256", digest)):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return target.getvalue()


def manifest(data: bytes) -> None:
    """What is in a snapshot, as the store and archives have it, and what stands in an image's."""
    with contextlib.suppress(DamagedError, InputError):
        strange_manifest(read_manifest(data, "fuzz"), "fuzz")
    with contextlib.suppress(DamagedError):
        decoded(data, "fuzz")


TARGETS: dict[str, Callable[[bytes], None]] = {
    "archive": archive,
    "manifest": manifest,
    "queue": queue,
    "pci": pci,
    "ports": ports,
    "agent": agent,
    "backend": backend,
    "kernel": kernel,
    "qcow2": qcow2,
    "state": state,
    "config": config,
    "qmp": qmp,
    **{kind.__name__.removesuffix("Device").lower(): partial(_device, kind) for kind in FUZZED},
}
"""By the names that `make fuzz` and the corpus have for them."""

if __name__ == "__main__":
    print(*TARGETS)
