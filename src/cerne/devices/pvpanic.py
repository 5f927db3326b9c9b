"""The panic notifier of a PC, by which a guest says that it can go no further, or has shut down.

QEMU's pvpanic-pci (docs/specs/pvpanic.rst there): one register of one byte, which says when it is
read what it understands, and is told when it is written what has happened.
"""

from __future__ import annotations

from collections.abc import Callable

from cerne.devices.pci.function import Bar, PciFunction, PciIdentity

PANICKED, CRASH_LOADED, SHUT_DOWN = 1, 2, 4
"""It ends here; another kernel takes over to look at what is left (kdump); or it has shut down, and
has no ACPI to switch the machine off by."""

_IDENTITY = PciIdentity(
    vendor=0x1B36, device=0x0011, class_code=0x088000, subsystem_vendor=0x1AF4, subsystem=0x1100
)
_BAR = Bar(0, 16)
_EVENTS = 0


class PanicNotifier(PciFunction):
    """All that it is made with is called when the guest says so, from its vCPU's thread.

    Of a crash kernel it tells once until the machine is reset, however often the guest says it.
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
        """What it understands; zero beside the register."""
        return PANICKED | CRASH_LOADED | SHUT_DOWN if offset == _EVENTS else 0

    def write_bar(self, bar: int, offset: int, size: int, value: int) -> None:
        """Take what has happened."""
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
        """Back to the state after power-on."""
        super().power_on()
        self._has_told = False
