"""The memory balloon (virtio 1.2, section 5.5): a guest gives memory back to its host.

The host sets the target size of the balloon; the driver puts pages of its guest into it, a few
hundred at a time, and the device frees them as ranges, not one by one. Free page reporting names
pages that are free now and that the guest may use again at any time. A third queue carries the
guest's statistics.

VIRTIO_BALLOON_F_PAGE_POISON is not offered: a freed page reads as zero, or, if the memory is from a
file, as the file's content, which is the guest's own old data. A driver that expects a certain
content of free pages, as Linux does with init_on_free or page_poison, then reports none
(virtballoon_validate); other drivers treat each page as uninitialised.
"""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from cerne.devices.state import PlainState, SavedState
from cerne.devices.virtio.buffers import gather, split
from cerne.devices.virtio.device import VirtioDevice
from cerne.devices.virtio.queue import Chain, QueueError
from cerne.errors import HostError
from cerne.kvm.memory import GuestMemory, GuestMemoryError
from cerne.units import counted

BALLOON_PAGE = 4096
"""The balloon's unit in bytes, which does not depend on the guest's pages."""
LARGEST_LIST = 1 << 20
"""The most bytes of page numbers in one chain: those of a GiB. Linux sends 1 KiB."""

FEATURE_STATISTICS = 1 << 1
FEATURE_DEFLATE_ON_OOM = 1 << 2
FEATURE_REPORTING = 1 << 5

INFLATE, DEFLATE, STATISTICS = 0, 1, 2
REPORTING = frozenset((3, 4))
"""Queue 4 in the specification; Linux takes the next after its used queues, which is 3."""

STATISTIC_NAMES = (
    "stat-swap-in",
    "stat-swap-out",
    "stat-major-faults",
    "stat-minor-faults",
    "stat-free-memory",
    "stat-total-memory",
    "stat-available-memory",
    "stat-disk-caches",
    "stat-htlb-pgalloc",
    "stat-htlb-pgfail",
)
"""The statistics by their tags, with QEMU's names."""

_CONFIG = struct.Struct("<II")
_ACTUAL = (4, 4)
_STATISTIC = struct.Struct("<HQ")
_MOST_STATISTICS = 64
_NUMBER = struct.Struct("<I")
_LARGEST_U64 = (1 << 64) - 1
_LARGEST_COUNT = (1 << 32) - 1


class BalloonDevice(VirtioDevice):
    """A balloon in a guest's memory; sizes are in bytes.

    `on_change` is called at a change of the balloon's size, with the lock held, from any thread; it
    must not wait.
    """

    device_type = 5
    features = FEATURE_STATISTICS | FEATURE_DEFLATE_ON_OOM | FEATURE_REPORTING
    queue_sizes = (128, 128, 16, 128, 128)

    def __init__(self, memory: GuestMemory, on_change: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._memory = memory
        self._on_change = on_change
        self._wanted = 0
        self._actual = 0
        # The driver offers its first statistics without a request.
        self._asked = True
        self._statistics: dict[str, int] = {}
        self._told = 0

    @property
    def size(self) -> int:
        """The size of the balloon that the driver reports."""
        return min(self._actual * BALLOON_PAGE, self._memory.size)

    @property
    def statistics(self) -> Mapping[str, int]:
        """The guest's last statistics, by `STATISTIC_NAMES`; they are not trustworthy."""
        return self._statistics

    @property
    def told(self) -> int:
        """The time of the statistics, in whole seconds since the epoch; 0 if there are none."""
        return self._told

    def want(self, size: int) -> None:
        """Ask the driver for a balloon of this size, which it may not reach."""
        with self.working():
            wanted = min(size, self._memory.size) // BALLOON_PAGE
            if wanted != self._wanted:
                self._wanted = wanted
                if self._host is not None:
                    self._host.config_changed()

    def ask(self) -> None:
        """Ask the driver for new statistics, unless a request is pending."""
        with self.working():
            if self._asked or not self.active or not self._queues[STATISTICS].ready:
                return
            queue = self._queues[STATISTICS]
            chain = queue.pop()
            if chain is not None:
                self._asked = True
                queue.push(chain.head, 0)
                self._notify_driver(queue)
                if queue.enable_notification():
                    self.process(STATISTICS)

    def config(self) -> bytes:
        """The balloon's target size and its size."""
        return _CONFIG.pack(self._wanted, self._actual)

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Handle the size that the driver reports."""
        if (offset, size) == _ACTUAL:
            self._set_actual(value)

    def process(self, queue_index: int) -> None:
        """Free the pages in the balloon or in a report, or read the statistics."""
        queue = self._queues[queue_index]
        if queue_index == STATISTICS:
            self._drain(queue, self._take_statistics)
        elif queue_index in REPORTING:
            self._drain(queue, self._take_report)
        else:
            inflates = queue_index == INFLATE
            self._drain(queue, self._inflate if inflates else self._deflate)

    def reset(self) -> None:
        """Empty the balloon, because the driver is gone."""
        super().reset()
        self._set_actual(0)
        self._asked = True
        self._statistics = {}
        self._told = 0

    def state(self) -> PlainState:
        """The balloon's size, its target size and the last statistics."""
        return {
            "wanted": self._wanted,
            "actual": self._actual,
            "asked": self._asked,
            "statistics": dict(self._statistics),
            "told": self._told,
        }

    def restore(self, state: PlainState) -> None:
        """Restore `state`; raises DamagedError if it is not valid."""
        saved = SavedState("a balloon", state)
        self._wanted = saved.integer("wanted", _LARGEST_COUNT)
        self._actual = saved.integer("actual", _LARGEST_COUNT)
        self._asked = saved.flag("asked")
        self._told = saved.integer("told", _LARGEST_U64)
        said = saved.section("statistics")
        self._statistics = {
            name: said.integer(name, _LARGEST_U64) for name in STATISTIC_NAMES if name in said
        }

    def _set_actual(self, pages: int) -> None:
        if pages != self._actual:
            self._actual = pages
            self._on_change()

    def _inflate(self, chain: Chain) -> int:
        with _refusing():
            for first, count in _runs(_page_numbers(chain)):
                self._give_back(first * BALLOON_PAGE, count * BALLOON_PAGE)
        return 0

    def _deflate(self, chain: Chain) -> int:
        # The host gives a new page when the guest first touches it.
        with _refusing():
            for first, count in _runs(_page_numbers(chain)):
                self._memory.require(first * BALLOON_PAGE, count * BALLOON_PAGE)
        return 0

    def _take_report(self, chain: Chain) -> int:
        with _refusing():
            for view in chain.writable:
                with contextlib.suppress(HostError):
                    self._memory.discard_view(view)
        return 0

    def _give_back(self, address: int, length: int) -> None:
        # If the host does not free the pages, the guest keeps them, which is harmless.
        with contextlib.suppress(HostError):
            self._memory.discard(address, length)

    def _take_statistics(self, chain: Chain) -> None:
        """Read a buffer, which the device keeps until the next request."""
        if not self._asked:
            return
        longest = _STATISTIC.size * _MOST_STATISTICS
        said = gather(split(chain.readable, longest)[0])
        whole = len(said) - len(said) % _STATISTIC.size
        values = dict(_STATISTIC.iter_unpack(said[:whole]))
        self._statistics = {
            name: values[tag] for tag, name in enumerate(STATISTIC_NAMES) if tag in values
        }
        self._told = int(time.time())
        self._asked = False


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except GuestMemoryError as error:
        raise QueueError(
            f"the driver gives pages back that are not in its memory: {error}"
        ) from error


def _page_numbers(chain: Chain) -> set[int]:
    size = chain.readable_size
    if size % _NUMBER.size or size > LARGEST_LIST:
        raise QueueError(f"a list of page numbers has {counted(size, 'byte')}")
    return {number for (number,) in _NUMBER.iter_unpack(gather(chain.readable))}


def _runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """The numbers as runs: the first of each, and its length."""
    first = end = -1
    for number in sorted(numbers):
        if number == end:
            end += 1
            continue
        if end > first:
            yield first, end - first
        first, end = number, number + 1
    if end > first:
        yield first, end - first
