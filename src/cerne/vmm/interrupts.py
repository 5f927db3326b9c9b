"""The routes of a machine's interrupts: to the pins of its controllers, and messages (MSI-X).

The kernel keeps one table of routes (KVM_SET_GSI_ROUTING), which is replaced as a whole. A message
has an eventfd that the kernel turns into an interrupt (KVM_IRQFD), so that a sender only writes to
it.
"""

from __future__ import annotations

import contextlib
import os
import threading

from cerne.kvm.abi import Irqchip
from cerne.kvm.vm import IrqchipRoute, MsiRoute, Vm

_PINS = 24
_PIC_PINS = 8
_TIMER_PIN = 2
"""The pin of the IOAPIC for the timer's line 0, as in the MADT and the MP table."""


class Interrupts:
    """The table of routes of one VM."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._change = threading.Lock()
        self._messages: dict[int, MsiRoute] = {}
        self._free: list[int] = []
        self._next = _PINS
        self._apply()

    def add_message(self, address: int, data: int) -> int:
        """Add a message; return the GSI that sends and changes it."""
        with self._change:
            if self._free:
                gsi = self._free.pop()
            else:
                gsi, self._next = self._next, self._next + 1
            self._messages[gsi] = MsiRoute(gsi, address, data)
            self._apply()
        return gsi

    def connect(self, eventfd: int, gsi: int) -> None:
        """Let an eventfd send a message; an eventfd that is already written sends it now."""
        self._vm.irqfd(eventfd, gsi)

    def disconnect(self, eventfd: int, gsi: int) -> None:
        """Disconnect an eventfd: it keeps later writes."""
        self._vm.deassign_irqfd(eventfd, gsi)

    def remove_message(self, gsi: int) -> None:
        """Remove a message that no eventfd sends."""
        with self._change:
            del self._messages[gsi]
            self._apply()
            self._free.append(gsi)

    def change_message(self, gsi: int, address: int, data: int) -> None:
        """Replace a message by another one."""
        route = MsiRoute(gsi, address, data)
        with self._change:
            if self._messages[gsi] != route:
                self._messages[gsi] = route
                self._apply()

    def power_on(self, vm: Vm) -> None:
        """Go on with another VM, which has no messages."""
        with self._change:
            self._vm = vm
            self._messages.clear()
            self._free.clear()
            self._next = _PINS
            self._apply()

    def _apply(self) -> None:
        self._vm.set_gsi_routing([*_pins(), *self._messages.values()])


class MessageVectors:
    """The MSI-X vectors of one device (`cerne.devices.pci` says when they are masked).

    The device triggers no masked vector. A backend does not know the mask: its eventfd is
    disconnected meanwhile, which takes the kernel milliseconds, and keeps later writes.
    """

    def __init__(self, interrupts: Interrupts, count: int) -> None:
        self._interrupts = interrupts
        # The last one is for queues without interrupts.
        self._eventfds = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(count + 1)]
        self._gsis: list[int | None] = [None] * count
        self._masked = [True] * count
        self._connected = [False] * count
        self._handed = [False] * count
        # Guards `withdraw`: a vCPU may be accessing a device that is removed.
        self._lock = threading.Lock()
        self._withdrawn = False

    def set_route(self, vector: int, address: int, data: int, masked: bool) -> None:
        """Set the message of a vector; None masks the vector."""
        with self._lock:
            if self._withdrawn:
                return
            gsi = self._gsis[vector]
            if gsi is not None:
                self._interrupts.change_message(gsi, address, data)
            elif not masked:
                self._gsis[vector] = self._interrupts.add_message(address, data)
            self._masked[vector] = masked
            self._connect(vector)

    def eventfd(self, vector: int) -> int:
        """The eventfd that a backend writes to send a vector's message, masked or not."""
        with self._lock:
            if vector < len(self._handed) and not self._handed[vector]:
                self._handed[vector] = True
                self._connect(vector)
            return self._eventfds[vector]

    def _connect(self, vector: int) -> None:
        gsi = self._gsis[vector]
        wanted = not self._masked[vector] or not self._handed[vector]
        if gsi is None or wanted == self._connected[vector]:
            return
        change = self._interrupts.connect if wanted else self._interrupts.disconnect
        change(self._eventfds[vector], gsi)
        self._connected[vector] = wanted

    def trigger(self, vector: int) -> None:
        """Send a vector's message; from any thread."""
        with self._lock:
            if not self._withdrawn:
                os.eventfd_write(self._eventfds[vector], 1)

    def withdraw(self) -> None:
        """Send no more messages, and release routes and eventfds, while the machine runs."""
        with self._lock:
            self._withdrawn = True
            for vector, gsi in enumerate(self._gsis):
                if self._connected[vector] and gsi is not None:
                    self._interrupts.disconnect(self._eventfds[vector], gsi)
                if gsi is not None:
                    self._interrupts.remove_message(gsi)
        self.close()

    def power_on(self) -> None:
        """Reset all routes for a VM without messages; pending messages are lost."""
        count = len(self._gsis)
        self._gsis = [None] * count
        self._masked = [True] * count
        self._connected = [False] * count
        for eventfd in self._eventfds:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(eventfd)

    def close(self) -> None:
        """Close the eventfds; the VM belongs to another process, or ends."""
        for eventfd in self._eventfds:
            os.close(eventfd)


def _pins() -> list[IrqchipRoute]:
    routes = []
    for gsi in range(_PINS):
        if gsi < _PIC_PINS:
            routes.append(IrqchipRoute(gsi, Irqchip.PIC_MASTER, gsi))
        elif gsi < 2 * _PIC_PINS:
            routes.append(IrqchipRoute(gsi, Irqchip.PIC_SLAVE, gsi - _PIC_PINS))
        if gsi != _TIMER_PIN:
            routes.append(IrqchipRoute(gsi, Irqchip.IOAPIC, gsi or _TIMER_PIN))
    return routes
