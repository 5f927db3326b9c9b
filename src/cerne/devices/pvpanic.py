"""The panic notifier of a PC, with which a guest reports a panic or a shutdown.

QEMU's pvpanic-pci (docs/specs/pvpanic.rst there): one register of one byte: reading it returns the
supported events, and writing it reports an event.
"""

from __future__ import annotations

from collections.abc import Callable

from cerne.devices.pci.function import Bar, PciFunction, PciIdentity

PANICKED, CRASH_LOADED, SHUT_DOWN = 1, 2, 4
"""The events: panic, panic with a crash kernel (kdump), shutdown of a guest without ACPI."""

_IDENTITY = PciIdentity(
    vendor=0x1B36, device=0x0011, class_code=0x088000, subsystem_vendor=0x1AF4, subsystem=0x1100
)
_BAR = Bar(0, 16)
_EVENTS = 0


class PanicNotifier(PciFunction):
    """Its callbacks are called at the guest's events, on the vCPU's thread.

    It reports a crash kernel once until the machine is reset, even if the guest repeats it.
    """

    def __init__(
        self,
        panicked: Callable[[], None],
        crash_loaded: Callable[[], None],
        shut_down: Callable[[], None],
    ) -> None:
        super().__init__(_IDENTITY)
        self._panicked = panicked
        self._crash_loaded = crash_loaded
        self._shut_down = shut_down
        self._has_told = False
        self.add_bar(_BAR)

    def read_bar(self, bar: int, offset: int, size: int) -> int:
        """The supported events; zero outside of the register."""
        return PANICKED | CRASH_LOADED | SHUT_DOWN if offset == _EVENTS else 0

    def write_bar(self, bar: int, offset: int, size: int, value: int) -> None:
        """Handle an event."""
        if offset != _EVENTS:
            return
        if value & PANICKED:
            self._panicked()
        elif value & CRASH_LOADED and not self._has_told:
            self._has_told = True
            self._crash_loaded()
        elif value & SHUT_DOWN:
            self._shut_down()

    def power_on(self) -> None:
        """Return to the state after power-on."""
        super().power_on()
        self._has_told = False
