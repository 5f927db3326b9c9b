"""A virtio device as a PCI function (virtio 1.2, section 4.1), with MSI-X for its interrupts.

One BAR contains the common configuration, the interrupt status, the device's own configuration, a
doorbell for each queue, and the MSI-X table. There is only the modern interface.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence

from cerne.devices.pci.function import Bar, PciFunction, PciIdentity
from cerne.devices.pci.msix import MsixRoutes, MsixTable
from cerne.devices.state import PlainState, SavedState
from cerne.devices.virtio.device import (
    FEATURE_EVENT_INDEX,
    FEATURE_INDIRECT,
    FEATURE_RING_RESET,
    FEATURE_VERSION_1,
    VirtioDevice,
)
from cerne.devices.virtio.handover import HandedQueue
from cerne.devices.virtio.queue import Queue, QueueError
from cerne.errors import DamagedError
from cerne.kvm.memory import GuestMemory

VENDOR = 0x1AF4
FIRST_DEVICE = 0x1040
BAR = 0
BAR_SIZE = 0x10000
NOTIFY_MULTIPLIER = 4

STATUS_ACKNOWLEDGE = 1
STATUS_DRIVER = 2
STATUS_DRIVER_OK = 4
STATUS_FEATURES_OK = 8
STATUS_NEEDS_RESET = 64
STATUS_FAILED = 128
_STATUS_OF_DRIVER = 0x8F

ISR_QUEUE = 1
ISR_CONFIG = 2
NO_VECTOR = 0xFFFF

COMMON = 0x0000
ISR = 0x1000
DEVICE = 0x2000
NOTIFY = 0x3000
TABLE = 0x4000
PENDING = 0xC000
_PART = 0x1000

_VENDOR_CAPABILITY = 0x09
_COMMON_TYPE, _NOTIFY_TYPE, _ISR_TYPE, _DEVICE_TYPE, _PCI_TYPE = 1, 2, 3, 4, 5

_COMMON = struct.Struct("<IIIIHHBBHHHHHQQQHH")
_ALL_ONES = (1 << 64) - 1


class VirtioPciTransport(PciFunction):
    """The function. The thread that waits for the doorbells' eventfds calls `kick`.

    `doorbells` are the eventfds of the queues, for handing a queue over, and for kicking the device
    again after its turn.
    """

    def __init__(
        self,
        device: VirtioDevice,
        memory: GuestMemory,
        routes: MsixRoutes,
        doorbells: Sequence[int],
    ) -> None:
        kind = FIRST_DEVICE + device.device_type
        super().__init__(PciIdentity(VENDOR, kind, device.class_code, 1, VENDOR, kind))
        self.device = device
        self.memory = memory
        self.queues = tuple(Queue(memory, size) for size in device.queue_sizes)
        self._doorbells = doorbells
        self.failure: QueueError | None = None
        """The reason for a needed reset, if any."""
        self.msix = MsixTable(len(self.queues) + 1, routes)
        self._pci_access = self._add_capabilities()
        self._setters = self._common_setters()
        self._isr = 0
        self._generation = 0
        self._forget_driver()
        device.attach(self)

    @property
    def offered(self) -> int:
        """All features that the driver may take."""
        # A plain number: the complement of an IntFlag has no bits above its own.
        return int(self.device.features) | self.device.transport_features

    @property
    def status(self) -> int:
        """The device status."""
        return self._status

    def notify_offset(self, queue: int) -> int:
        """The offset in the BAR of a queue's doorbell: 4 bytes, which take any value."""
        return NOTIFY + NOTIFY_MULTIPLIER * queue

    def kick(self, queue: int) -> None:
        """Let the device serve a queue, if the driver is ready."""
        with self.device.working():
            if queue >= len(self.queues) or not self.queues[queue].ready:
                return
            if not self._status & STATUS_DRIVER_OK:
                # This is against the rules, but Linux's balloon driver does it.
                self._early.add(queue)
            elif self._status & STATUS_NEEDS_RESET:
                return
            elif queue in self.device.handed_queues:
                self._ring(queue)
            else:
                self.device.process(queue)
        with self.device.lock:
            self._do_delayed_resets()

    def rouse(self) -> None:
        """Serve all queues and send an interrupt for each, because notifications may be lost."""
        for index, queue in enumerate(self.queues):
            self._kick_or_ring(index)
            with self.device.lock:
                if queue.ready and queue.msix_vector is not None:
                    self._interrupt(ISR_QUEUE, queue.msix_vector)

    def config_changed(self) -> None:
        """Tell the driver to read the device's configuration again."""
        self._generation = (self._generation + 1) & 0xFF
        if self._status & STATUS_DRIVER_OK:
            self._interrupt(ISR_CONFIG, self._config_vector)

    def failed(self, error: QueueError) -> None:
        """Stop the device until the driver resets it."""
        if self.failure is None:
            self.failure = error
            self._status |= STATUS_NEEDS_RESET
            # Neither its driver nor its host side may use it now.
            self.device.interrupt()
            if self.device.active:
                self.device.reset()
            self.config_changed()

    def hand_over(self, queue_index: int) -> HandedQueue | None:
        """A queue for a backend; None if the driver does not use it."""
        queue = self.queues[queue_index]
        if not queue.ready:
            return None
        vector = self.msix.count if queue.msix_vector is None else queue.msix_vector
        kick, call = self._doorbells[queue_index], self.msix.eventfd(vector)
        return HandedQueue.of(queue_index, queue, kick, call)

    def come_back(self, queue: Queue) -> None:
        """Kick the device again, after the turn of others."""
        self._ring(self.queues.index(queue))

    def reset(self) -> None:
        """Return to the driver's state after power-on; PCI keeps its state.

        The device must not be busy.
        """
        with self.device.lock:
            if self.device.active:
                self.device.reset()
            self._forget_driver()

    def power_on(self) -> None:
        """Return to the state after power-on, also of PCI; for a reset of the machine."""
        self.reset()
        super().power_on()
        self.msix.reset()

    def read_bar(self, bar: int, offset: int, size: int) -> int:
        """Read one of the parts."""
        if offset >= PENDING:
            return self.msix.read_pending(offset - PENDING, size)
        if offset >= TABLE:
            return self.msix.read_table(offset - TABLE, size)
        part, within = offset & -_PART, offset % _PART
        if part == COMMON:
            # Another vCPU may select another queue meanwhile.
            with self.device.lock:
                return int.from_bytes(self._common()[within : within + size], "little")
        if part == DEVICE:
            with self.device.lock:
                return self.device.read_config(within, size)
        if part == ISR and within == 0:
            with self.device.lock:
                value, self._isr = self._isr, 0
                return value
        return 0

    def write_bar(self, bar: int, offset: int, size: int, value: int) -> None:
        """Write one of the parts."""
        part, within = offset & -_PART, offset % _PART
        if part == NOTIFY:
            self._kick_or_ring(within // NOTIFY_MULTIPLIER)
        elif part == COMMON:
            setter = self._setters.get((within, size))
            if setter is not None:
                with self.device.working():
                    self._set(setter, value)
        elif part == DEVICE:
            with self.device.working():
                self.device.write_config(within, size, value)
        elif TABLE <= offset < PENDING:
            self.msix.write_table(offset - TABLE, size, value)

    def config_read(self, offset: int, size: int) -> None:
        """Fetch the data of the PCI configuration access capability, if it is read."""
        data = self._pci_access + 16
        access = self._pci_access_target() if offset < data + 4 and data < offset + size else None
        if access is not None:
            value = self.read_bar(BAR, *access)
            self._config[data : data + 4] = value.to_bytes(4, "little")

    def config_written(self, offset: int, size: int) -> None:
        """Handle writes through the PCI configuration access capability, and of MSI-X."""
        data = self._pci_access + 16
        access = self._pci_access_target() if offset < data + 4 and data < offset + size else None
        if access is not None:
            value = int.from_bytes(self._config[data : data + access[1]], "little")
            self.write_bar(BAR, *access, value)
        self.msix.control_written()

    def state(self) -> PlainState:
        """The state of the function, its queues and its device; the device must be idle."""
        with self.device.lock:
            return {
                "pci": self.config_state(),
                "msix": self.msix.state(),
                "isr": self._isr,
                "status": self._status,
                "generation": self._generation,
                "device_select": self._device_select,
                "driver_select": self._driver_select,
                "driver_features": self._driver_features,
                "config_vector": self._config_vector,
                "queue_select": self._queue_select,
                "failure": self.failure.message if self.failure else "",
                "queues": [queue.state() for queue in self.queues],
                "device": self.device.state(),
            }

    def restore(self, state: PlainState) -> None:
        """Restore `state`; raises DamagedError if it is not valid."""
        saved = SavedState("a virtio device", state)
        with self.device.lock:
            self.reset()
            self.restore_config(saved.plain("pci"))
            self._isr = saved.integer("isr", ISR_QUEUE | ISR_CONFIG)
            self._generation = saved.integer("generation", 0xFF)
            self._device_select = saved.integer("device_select", 0xFFFFFFFF)
            self._driver_select = saved.integer("driver_select", 0xFFFFFFFF)
            self._driver_features = saved.integer("driver_features", _ALL_ONES)
            self._config_vector = self._vector(saved.integer("config_vector", NO_VECTOR))
            self._queue_select = saved.integer("queue_select", 0xFFFF)
            reason = saved.text("failure", 4096)
            self.failure = QueueError(reason) if reason else None
            queues = saved.plain_list("queues", len(self.queues))
            for queue, queue_state in zip(self.queues, queues, strict=True):
                queue.restore(queue_state)
            self._restore_status(saved.integer("status", 0xFF))
            self.device.restore(saved.plain("device"))
            self.msix.restore(saved.plain("msix"))

    def _restore_status(self, status: int) -> None:
        if status & STATUS_FEATURES_OK and not self._features_fit():
            raise DamagedError("a saved virtio device has features that this one does not offer")
        self._status = status
        if status & (STATUS_DRIVER_OK | STATUS_NEEDS_RESET) == STATUS_DRIVER_OK:
            self.device.activate(self.queues, self._driver_features, self._notify)

    def _forget_driver(self) -> None:
        self._status = 0
        self._isr = 0
        self._device_select = 0
        self._driver_select = 0
        self._driver_features = 0
        self._config_vector = NO_VECTOR
        self._queue_select = 0
        self._early: set[int] = set()
        self._reset_delayed = False
        self._queue_resets_delayed: set[int] = set()
        self.failure = None
        for queue in self.queues:
            queue.reset()

    def _add_capabilities(self) -> int:
        self.add_bar(Bar(BAR, BAR_SIZE))
        self.add_capability(_VENDOR_CAPABILITY, _capability(_COMMON_TYPE, COMMON, _COMMON.size))
        self.add_capability(_VENDOR_CAPABILITY, _capability(_ISR_TYPE, ISR, 1))
        self.add_capability(_VENDOR_CAPABILITY, _capability(_DEVICE_TYPE, DEVICE, _PART))
        multiplier = NOTIFY_MULTIPLIER.to_bytes(4, "little")
        doorbells = NOTIFY_MULTIPLIER * len(self.queues)
        notify = _capability(_NOTIFY_TYPE, NOTIFY, doorbells, multiplier)
        self.add_capability(_VENDOR_CAPABILITY, notify)
        self.msix.add_to(self, BAR, TABLE, PENDING)
        # The driver chooses BAR, offset and length, and then reads or writes the data behind them.
        writable = bytes((0, 0, 0xFF, 0, 0, 0)) + b"\xff" * 12
        body = _capability(_PCI_TYPE, 0, 0, bytes(4))
        return self.add_capability(_VENDOR_CAPABILITY, body, writable)

    def _pci_access_target(self) -> tuple[int, int] | None:
        base = self._pci_access
        offset, length = struct.unpack_from("<II", self._config, base + 8)
        if self._config[base + 4] != BAR or length not in (1, 2, 4):
            return None
        if offset % length or offset + length > BAR_SIZE:
            return None
        return offset, length

    def _common(self) -> bytes:
        queue = self._selected()
        return _COMMON.pack(
            self._device_select,
            _word(self.offered, self._device_select),
            self._driver_select,
            _word(self._driver_features, self._driver_select),
            self._config_vector,
            len(self.queues),
            self._status,
            self._generation,
            self._queue_select,
            queue.size if queue else 0,
            NO_VECTOR if queue is None or queue.msix_vector is None else queue.msix_vector,
            int(queue.ready) if queue else 0,
            self._queue_select if queue else 0,
            queue.descriptors if queue else 0,
            queue.driver if queue else 0,
            queue.device if queue else 0,
            0,
            int(self._queue_select in self._queue_resets_delayed),
        )

    def _set(self, setter: Callable[[int], None], value: int) -> None:
        # The driver has to wait until a reset is done (virtio 1.2, section 4.1.4.3.2).
        if not self._reset_delayed:
            setter(value)

    def _do_delayed_resets(self) -> None:
        """Do what waited for the end of a request."""
        if self._reset_delayed:
            self.reset()
        for index in self._queue_resets_delayed:
            self._stop_queue(index)
        self._queue_resets_delayed.clear()

    def _common_setters(self) -> dict[tuple[int, int], Callable[[int], None]]:
        setters: dict[tuple[int, int], Callable[[int], None]] = {
            (0, 4): self._set_device_select,
            (8, 4): self._set_driver_select,
            (12, 4): self._set_driver_features,
            (16, 2): self._set_config_vector,
            (20, 1): self._set_status,
            (22, 2): self._set_queue_select,
            (24, 2): self._set_queue_size,
            (26, 2): self._set_queue_vector,
            (28, 2): self._enable_queue,
            (58, 2): self._reset_queue,
        }
        for offset, name in ((32, "descriptors"), (40, "driver"), (48, "device")):
            setters[offset, 8] = self._address_setter(name, 0, _ALL_ONES)
            setters[offset, 4] = self._address_setter(name, 0, 0xFFFFFFFF)
            setters[offset + 4, 4] = self._address_setter(name, 32, 0xFFFFFFFF)
        return setters

    def _set_device_select(self, value: int) -> None:
        self._device_select = value

    def _set_driver_select(self, value: int) -> None:
        self._driver_select = value

    def _set_driver_features(self, value: int) -> None:
        if self._status & STATUS_FEATURES_OK or self._driver_select > 1:
            return
        shift = 32 * self._driver_select
        kept = self._driver_features & ~(0xFFFFFFFF << shift)
        self._driver_features = kept | value << shift

    def _set_config_vector(self, value: int) -> None:
        self._config_vector = self._vector(value)

    def _set_queue_select(self, value: int) -> None:
        self._queue_select = value

    def _set_queue_size(self, value: int) -> None:
        queue = self._settable()
        if queue is not None:
            queue.size = value

    def _set_queue_vector(self, value: int) -> None:
        queue = self._selected()
        if queue is not None:
            vector = self._vector(value)
            queue.msix_vector = None if vector == NO_VECTOR else vector
            if self._in_use(queue):
                self.device.queue_rerouted(self._queue_select)

    def _address_setter(self, name: str, shift: int, mask: int) -> Callable[[int], None]:
        def set_address(value: int) -> None:
            queue = self._settable()
            if queue is not None:
                kept = getattr(queue, name) & ~(mask << shift)
                setattr(queue, name, kept | (value & mask) << shift)

        return set_address

    def _enable_queue(self, value: int) -> None:
        queue = self._settable()
        if queue is None or value != 1 or not self._status & STATUS_FEATURES_OK:
            return
        queue.event_index = bool(self._driver_features & FEATURE_EVENT_INDEX)
        queue.indirect = bool(self._driver_features & FEATURE_INDIRECT)
        queue.ready = True
        if self._in_use(queue):
            self.device.queue_started(self._queue_select)

    def _reset_queue(self, value: int) -> None:
        queue = self._selected()
        if queue is None or value != 1 or not self._driver_features & FEATURE_RING_RESET:
            return
        if self.device.busy is queue:
            self._queue_resets_delayed.add(self._queue_select)
            self.device.interrupt()
        else:
            self._stop_queue(self._queue_select)

    def _stop_queue(self, index: int) -> None:
        queue = self.queues[index]
        if self._in_use(queue):
            self.device.queue_stopped(index)
        queue.reset()

    def _in_use(self, queue: Queue) -> bool:
        return queue.ready and bool(self._status & STATUS_DRIVER_OK)

    def _set_status(self, value: int) -> None:
        if value == 0 and self.device.busy is not None:
            self._reset_delayed = True
            self.device.interrupt()
            return
        if value == 0:
            self.reset()
            return
        added = value & _STATUS_OF_DRIVER & ~self._status
        if added & STATUS_FEATURES_OK and not self._features_fit():
            added &= ~(STATUS_FEATURES_OK | STATUS_DRIVER_OK)
        if not (self._status | added) & STATUS_FEATURES_OK:
            added &= ~STATUS_DRIVER_OK
        self._status |= added
        if added & STATUS_DRIVER_OK and self.failure is None:
            self.device.activate(self.queues, self._driver_features, self._notify)
            for queue in self._early:
                self._ring(queue)
            self._early.clear()

    def _features_fit(self) -> bool:
        return bool(self._driver_features & FEATURE_VERSION_1) and not (
            self._driver_features & ~self.offered
        )

    def _selected(self) -> Queue | None:
        return self.queues[self._queue_select] if self._queue_select < len(self.queues) else None

    def _settable(self) -> Queue | None:
        queue = self._selected()
        return None if queue is None or queue.ready else queue

    def _vector(self, value: int) -> int:
        return value if value < self.msix.count else NO_VECTOR

    def _kick_or_ring(self, queue: int) -> None:
        """Serve a queue here, or wake the thread that serves it."""
        if not self.device.served_apart:
            self.kick(queue)
        elif queue < len(self.queues):
            self._ring(queue)

    def _ring(self, queue: int) -> None:
        os.eventfd_write(self._doorbells[queue], 1)

    def _notify(self, queue: Queue) -> None:
        if queue.should_notify():
            vector = NO_VECTOR if queue.msix_vector is None else queue.msix_vector
            self._interrupt(ISR_QUEUE, vector)

    def _interrupt(self, reason: int, vector: int) -> None:
        self._isr |= reason
        if vector != NO_VECTOR:
            self.msix.trigger(vector)


def _capability(kind: int, offset: int, length: int, rest: bytes = b"") -> bytes:
    # virtio_pci_cap without its first two bytes, which every capability has.
    return struct.pack("<BBBBHII", 16 + len(rest), kind, BAR, 0, 0, offset, length) + rest


def _word(features: int, select: int) -> int:
    return features >> 32 * select & 0xFFFFFFFF if select < 2 else 0
