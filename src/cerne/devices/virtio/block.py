"""The block device (virtio 1.2, section 5.2) over a disk (`cerne.devices.block`).

Data moves between the disk and guest memory without a copy. A failed request is answered with an
error status; a request without room for a status is dropped. One thread serves all queues of a
device, without the device's lock while the disk works. A request that has to wait for a limit stays
in its queue.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from functools import partial

from cerne.devices.block.disk import Disk
from cerne.devices.limiter import Limiter
from cerne.devices.state import PlainState
from cerne.devices.virtio.buffers import gather, scatter, size_of, split
from cerne.devices.virtio.device import After, VirtioDevice
from cerne.devices.virtio.queue import Chain
from cerne.errors import InputError
from cerne.units import counted

SECTOR = 512
LONGEST_SERIAL = 20

_QUEUE_SIZE = 128
_LARGEST_WIPE = 65536
"""Sectors of one range to discard or to zero."""
_MOST_RANGES = 16

_IN, _OUT, _FLUSH, _GET_ID, _DISCARD, _WRITE_ZEROES = 0, 1, 4, 8, 11, 13
_OK, _FAILED, _UNSUPPORTED = 0, 1, 2

_FEATURE_SEG_MAX = 1 << 2
_FEATURE_READ_ONLY = 1 << 5
_FEATURE_BLOCK_SIZE = 1 << 6
_FEATURE_FLUSH = 1 << 9
_FEATURE_QUEUES = 1 << 12
_FEATURE_DISCARD = 1 << 13
_FEATURE_WRITE_ZEROES = 1 << 14

_HEADER = struct.Struct("<IIQ")
_RANGE = struct.Struct("<QII")
_CONFIG = struct.Struct("<QII4xI8x2xHIIIIIB3x")
_UNMAP = 1


class _RequestError(Exception):
    """An error with the status that answers the request."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class DiskCounts:
    """The requests that a disk has done, and their bytes."""

    __slots__ = ("read", "reads", "writes", "written")

    def __init__(self, reads: int = 0, writes: int = 0, read: int = 0, written: int = 0) -> None:
        self.reads = reads
        self.writes = writes
        self.read = read
        self.written = written


class BlockDevice(VirtioDevice):
    """A guest's disk; the caller keeps the object with its bytes, and a limiter with others."""

    device_type = 2
    class_code = 0x018000
    served_apart = True

    def __init__(
        self,
        disk: Disk,
        *,
        serial: str = "",
        read_only: bool = False,
        queues: int = 1,
        limiter: Limiter | None = None,
    ) -> None:
        super().__init__()
        if len(serial.encode()) > LONGEST_SERIAL:
            raise InputError(f"the disk serial {serial!r} is longer than {LONGEST_SERIAL} bytes")
        self._disk = disk
        self._limiter = limiter or Limiter()
        self._after: After | None = None
        self._waiting: set[int] = set()
        self.counts = DiskCounts()
        self._serial = serial.encode()
        self._read_only = read_only
        self.sectors = disk.size // SECTOR
        self.queue_sizes = (_QUEUE_SIZE,) * queues
        self.features = _FEATURE_SEG_MAX | _FEATURE_BLOCK_SIZE | _FEATURE_QUEUES | _FEATURE_FLUSH
        if read_only:
            self.features |= _FEATURE_READ_ONLY
        else:
            self.features |= _FEATURE_DISCARD | _FEATURE_WRITE_ZEROES
        self._requests: dict[int, Callable[[int, Chain], int]] = {
            _IN: self._read,
            _OUT: self._write,
            _FLUSH: self._flush,
            _GET_ID: self._identify,
            _DISCARD: self._discard,
            _WRITE_ZEROES: self._write_zeroes,
        }

    def replace(self, disk: Disk) -> Disk:
        """Replace the disk by one of the same content, while it rests; return the old one.

        Raises:
            InputError: it has another size.
        """
        if disk.size // SECTOR != self.sectors:
            raise InputError(
                f"the new disk has {counted(disk.size, 'byte')} and the old one {self._disk.size}"
            )
        with self.lock:
            former, self._disk = self._disk, disk
        return former

    def close(self) -> None:
        """Close the disk in order; no thread serves it any more."""
        with self.lock:
            self._disk.close()

    def wait_with(self, after: After) -> None:
        """Set the function that serves it again after a limit's wait; before it is used."""
        self._after = after

    def limit_changed(self) -> None:
        """Serve the queues that wait for a limit; on the thread that serves the device."""
        with self.working():
            for queue_index in list(self._waiting):
                self._wait_ends(queue_index)

    def config(self) -> bytes:
        """Capacity and limits."""
        return _CONFIG.pack(
            self.sectors,
            0,
            _QUEUE_SIZE - 2,
            SECTOR,
            len(self.queue_sizes),
            _LARGEST_WIPE,
            _MOST_RANGES,
            1,
            _LARGEST_WIPE,
            _MOST_RANGES,
            1,
        )

    def state(self) -> PlainState:
        """The state, which is empty: the queues and the disk have all."""
        return {}

    def process(self, queue_index: int) -> None:
        """Serve every request that is offered."""
        if queue_index not in self._waiting:
            queue = self._queues[queue_index]
            self._drain(queue, partial(self._serve_unlocked, queue_index))

    def _serve_unlocked(self, queue_index: int, chain: Chain) -> int | None:
        if self._limiter.active and self._has_to_wait(queue_index, chain):
            return None
        self.busy = self._queues[queue_index]
        self.lock.release()
        try:
            return self._serve(chain)
        finally:
            self.lock.acquire()
            self.busy = None

    def _has_to_wait(self, queue_index: int, chain: Chain) -> bool:
        size = chain.readable_size + chain.writable_size
        wait = self._limiter.admit(size, time.monotonic())
        if wait == 0 or self._after is None:
            return False
        self._waiting.add(queue_index)
        self._after(wait, partial(self._wait_is_over, queue_index))
        return True

    def _wait_is_over(self, queue_index: int) -> None:
        with self.working():
            self._wait_ends(queue_index)

    def _wait_ends(self, queue_index: int) -> None:
        self._waiting.discard(queue_index)
        if self._host is not None and self.active:
            self._host.come_back(self._queues[queue_index])

    def _serve(self, chain: Chain) -> int:
        room = chain.writable_size - 1
        if room < 0:
            return 0
        data, status_view = split(chain.writable, room)
        header, output = split(chain.readable, _HEADER.size)
        written, status = self._answer(gather(header), Chain(chain.head, output, data))
        scatter(status_view, bytes((status,)))
        return written + 1

    def _answer(self, header: bytes, request: Chain) -> tuple[int, int]:
        if len(header) < _HEADER.size:
            return 0, _FAILED
        kind, _, sector = _HEADER.unpack(header)
        serve = self._requests.get(kind)
        if serve is None:
            return 0, _UNSUPPORTED
        try:
            return serve(sector, request), _OK
        except _RequestError as error:
            return 0, error.status
        except OSError:
            return 0, _FAILED

    def _read(self, sector: int, request: Chain) -> int:
        size = size_of(request.writable)
        self._disk.read(self._place(sector, size), request.writable)
        self.counts.reads += 1
        self.counts.read += size
        return size

    def _write(self, sector: int, request: Chain) -> int:
        self._require_writable()
        size = size_of(request.readable)
        self._disk.write(self._place(sector, size), request.readable)
        self.counts.writes += 1
        self.counts.written += size
        return 0

    def _flush(self, sector: int, request: Chain) -> int:
        self._disk.flush()
        return 0

    def _identify(self, sector: int, request: Chain) -> int:
        return scatter(request.writable, self._serial.ljust(LONGEST_SERIAL, b"\0"))

    def _discard(self, sector: int, request: Chain) -> int:
        for offset, size, _ in self._ranges(request):
            self._disk.discard(offset, size)
        return 0

    def _write_zeroes(self, sector: int, request: Chain) -> int:
        for offset, size, unmap in self._ranges(request):
            # The guest may change these numbers until now, so they are counted here.
            self._limiter.charge(size, time.monotonic())
            self._disk.write_zeroes(offset, size, unmap=unmap)
        return 0

    def _ranges(self, request: Chain) -> list[tuple[int, int, bool]]:
        self._require_writable()
        data = gather(split(request.readable, _RANGE.size * _MOST_RANGES + 1)[0])
        if not data or len(data) % _RANGE.size:
            raise _RequestError(_FAILED)
        ranges = []
        for sector, count, flags in _RANGE.iter_unpack(data):
            if flags & ~_UNMAP or count > _LARGEST_WIPE:
                raise _RequestError(_UNSUPPORTED)
            if count:
                place = self._place(sector, count * SECTOR)
                ranges.append((place, count * SECTOR, bool(flags & _UNMAP)))
        return ranges

    def _require_writable(self) -> None:
        if self._read_only:
            raise _RequestError(_FAILED)

    def _place(self, sector: int, size: int) -> int:
        if size % SECTOR or sector + size // SECTOR > self.sectors:
            raise _RequestError(_FAILED)
        return sector * SECTOR
