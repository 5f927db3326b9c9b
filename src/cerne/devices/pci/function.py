"""One PCI function: its configuration space, base address registers and capabilities.

PCI Local Bus Specification 3.0, chapter 6, with a type 0 header. The space has 256 bytes; a mask
says which bits a guest may write, and all others keep their value.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from cerne.devices.state import PlainState, SavedState

CONFIG_SIZE = 256
BAR_COUNT = 6

COMMAND = 0x04
COMMAND_MEMORY = 1 << 1
COMMAND_BUS_MASTER = 1 << 2
COMMAND_NO_INTERRUPT = 1 << 10

_STATUS = 0x06
_STATUS_CAPABILITIES = 1 << 4
_BARS = 0x10
_CAPABILITIES = 0x34
_FIRST_CAPABILITY = 0x40
_INTERRUPT_LINE = 0x3C

_BAR_64_BIT = 1 << 2
_BAR_PREFETCHABLE = 1 << 3
_BAR_FLAGS = 0xF


class PciIdentity(NamedTuple):
    """The identity of a function."""

    vendor: int
    device: int
    class_code: int
    """Class, subclass and programming interface: 24 bits."""
    revision: int = 0
    subsystem_vendor: int = 0
    subsystem: int = 0


class Bar(NamedTuple):
    """A memory range of the function, which needs an address."""

    number: int
    size: int
    """Bytes; a power of two, at least 16."""
    wide: bool = False
    """A 64-bit register, which takes the next index as well."""
    prefetchable: bool = False


class BarMapper(Protocol):
    """Maps a function's memory at the guest's address; the machine's side of a BAR."""

    def map(self, function: PciFunction, bar: int, address: int, size: int) -> bool:
        """Map the function's `read_bar` and `write_bar` at an address.

        Returns False if another device is there, because a guest may ask for any address.
        """

    def unmap(self, function: PciFunction, bar: int) -> None:
        """Unmap them."""


class PciFunction:
    """A function; a subclass has its `read_bar` and `write_bar`."""

    def __init__(self, identity: PciIdentity) -> None:
        self._config = bytearray(CONFIG_SIZE)
        self._writable = bytearray(CONFIG_SIZE)
        self._bars: dict[int, Bar] = {}
        self._mapped: dict[int, int] = {}
        self._mapper: BarMapper | None = None
        self._last_capability = 0
        self._capability_end = _FIRST_CAPABILITY
        self._put(0x00, 2, identity.vendor)
        self._put(0x02, 2, identity.device)
        self._put(0x08, 1, identity.revision)
        self._put(0x09, 3, identity.class_code)
        self._put(0x2C, 2, identity.subsystem_vendor)
        self._put(0x2E, 2, identity.subsystem)
        self._allow(COMMAND, 2, COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_NO_INTERRUPT)
        self._allow(_INTERRUPT_LINE, 1, 0xFF)

    def read_bar(self, bar: int, offset: int, size: int) -> int:
        """Answer a read of the memory behind a BAR."""
        raise NotImplementedError(f"{type(self).__name__} has no memory to read")

    def write_bar(self, bar: int, offset: int, size: int, value: int) -> None:
        """Handle a write of the memory behind a BAR."""
        raise NotImplementedError(f"{type(self).__name__} has no memory to write")

    def config_written(self, offset: int, size: int) -> None:
        """Called after the guest wrote configuration bytes; a subclass may handle its own."""

    def config_read(self, offset: int, size: int) -> None:
        """Called before the guest reads configuration bytes; a subclass may fill in its own."""

    @property
    def bars(self) -> tuple[Bar, ...]:
        """The memory ranges that the function has."""
        return tuple(self._bars.values())

    @property
    def command(self) -> int:
        """The command register."""
        return self._get(COMMAND, 2)

    def attach(self, mapper: BarMapper) -> None:
        """Give the function the mapper of its memory."""
        self._mapper = mapper

    def detach(self) -> None:
        """Unmap its memory for ever."""
        for bar in list(self._mapped):
            del self._mapped[bar]
            if self._mapper is not None:
                self._mapper.unmap(self, bar)
        self._mapper = None

    def place(self, bar: int, address: int) -> None:
        """Choose a BAR's address, as firmware does before a guest runs."""
        self._set_bar(self._bars[bar], address)
        self._place_bars()

    def bar_address(self, bar: int) -> int:
        """The address of a BAR."""
        chosen = self._bars[bar]
        value = self._get(_BARS + 4 * bar, 8 if chosen.wide else 4)
        return value & ~_BAR_FLAGS

    def add_bar(self, bar: Bar) -> None:
        """Add a memory range; once for each index."""
        taken = {bar.number, bar.number + 1} if bar.wide else {bar.number}
        used = {
            index + extra for index, each in self._bars.items() for extra in range(each.wide + 1)
        }
        if taken & used or max(taken) >= BAR_COUNT or bar.size < 16 or bar.size & (bar.size - 1):
            raise ValueError(f"{bar} does not fit a function with {self.bars}")
        self._bars[bar.number] = bar
        flags = (_BAR_64_BIT if bar.wide else 0) | (_BAR_PREFETCHABLE if bar.prefetchable else 0)
        width = 8 if bar.wide else 4
        self._put(_BARS + 4 * bar.number, width, flags)
        self._allow(_BARS + 4 * bar.number, width, -bar.size)

    def add_capability(self, identifier: int, body: bytes, writable: bytes = b"") -> int:
        """Append a capability; returns its offset. `writable` masks the body's bytes."""
        offset = self._capability_end
        end = offset + 2 + len(body)
        if end > CONFIG_SIZE:
            raise ValueError("the configuration space is full of capabilities")
        self._config[offset : offset + 2] = bytes((identifier, 0))
        self._config[offset + 2 : end] = body
        self._writable[offset + 2 : offset + 2 + len(writable)] = writable
        self._config[self._last_capability + 1 if self._last_capability else _CAPABILITIES] = offset
        self._put(_STATUS, 2, self._get(_STATUS, 2) | _STATUS_CAPABILITIES)
        self._last_capability = offset
        self._capability_end = (end + 3) & ~3
        return offset

    def read_config(self, offset: int, size: int) -> int:
        """Read 1, 2 or 4 bytes; all ones past the end."""
        if offset + size > CONFIG_SIZE:
            return (1 << 8 * size) - 1
        self.config_read(offset, size)
        return self._get(offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Write 1, 2 or 4 bytes; read-only bits stay."""
        if offset + size > CONFIG_SIZE:
            return
        mask = int.from_bytes(self._writable[offset : offset + size], "little")
        self._put(offset, size, self._get(offset, size) & ~mask | value & mask)
        if offset < _BARS + 4 * BAR_COUNT and offset + size > COMMAND:
            self._place_bars()
        self.config_written(offset, size)

    def power_on(self) -> None:
        """Return to the state after power-on, for a reset of the machine.

        All writes of the guest are forgotten: no memory is decoded, and none has an address.
        """
        for at, mask in enumerate(self._writable):
            self._config[at] &= ~mask & 0xFF
        self._place_bars()

    def config_state(self) -> PlainState:
        """The configuration space as it is."""
        return {"config": self._config.hex()}

    def restore_config(self, state: PlainState) -> None:
        """Restore the guest's writes; raises DamagedError if they are not valid."""
        saved = SavedState("a PCI function", state).data("config", CONFIG_SIZE)
        for at, (value, mask) in enumerate(zip(saved, self._writable, strict=False)):
            self._config[at] = self._config[at] & ~mask | value & mask
        self._place_bars()

    def _place_bars(self) -> None:
        if self._mapper is None:
            return
        decoding = bool(self.command & COMMAND_MEMORY)
        for bar in self._bars.values():
            address = self.bar_address(bar.number)
            wanted = address if decoding and _can_be_at(bar, address) else None
            if wanted == self._mapped.get(bar.number):
                continue
            if self._mapped.pop(bar.number, None) is not None:
                self._mapper.unmap(self, bar.number)
            if wanted is not None and self._mapper.map(self, bar.number, wanted, bar.size):
                self._mapped[bar.number] = wanted

    def _set_bar(self, bar: Bar, address: int) -> None:
        width = 8 if bar.wide else 4
        flags = self._get(_BARS + 4 * bar.number, 1) & _BAR_FLAGS
        self._put(_BARS + 4 * bar.number, width, address & -bar.size | flags)

    def _get(self, offset: int, size: int) -> int:
        return int.from_bytes(self._config[offset : offset + size], "little")

    def _put(self, offset: int, size: int, value: int) -> None:
        self._config[offset : offset + size] = value.to_bytes(size, "little")

    def _allow(self, offset: int, size: int, mask: int) -> None:
        unsigned = mask & (1 << 8 * size) - 1
        self._writable[offset : offset + size] = unsigned.to_bytes(size, "little")


def _can_be_at(bar: Bar, address: int) -> bool:
    # While a guest sizes a BAR, the BAR has all ones; no memory is mapped there or at 0.
    limit = 1 << 52 if bar.wide else (1 << 32) - bar.size
    return 0 < address < limit
