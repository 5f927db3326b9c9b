"""One virtual machine of the kernel: its memory, interrupts, timers and clock.

Methods are named after the ioctls (Documentation/virt/kvm/api.rst) and add no policy. An ioctl
that the kernel refuses raises `KvmError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_uint64, sizeof
from typing import NamedTuple

from cerne.kvm import abi
from cerne.kvm._address import address_of
from cerne.kvm._descriptor import Descriptor
from cerne.kvm._ioctl import ioctl
from cerne.kvm.abi import (
    Capability,
    ClockFlag,
    Flexible,
    Ioctl,
    IoeventfdFlag,
    Irqchip,
    IrqfdFlag,
    RoutingType,
)
from cerne.kvm.memory import PAGE_SIZE, GuestMemory, MemoryRegion
from cerne.kvm.stats import Statistics, read_stats
from cerne.kvm.vcpu import Vcpu
from cerne.units import counted

_FIRST_BLOCK_SLOT = 16
"""The memory slots from this one on are those of plugged blocks."""


class IrqchipRoute(NamedTuple):
    """A GSI that leads to a pin of an interrupt controller in the kernel."""

    gsi: int
    irqchip: Irqchip
    pin: int


class MsiRoute(NamedTuple):
    """A GSI that becomes a message-signalled interrupt."""

    gsi: int
    address: int
    data: int


Route = IrqchipRoute | MsiRoute


class Vm(Descriptor):
    """A virtual machine; made by `Kvm.create_vm`."""

    def __init__(self, descriptor: int, vcpu_mmap_size: int) -> None:
        super().__init__(descriptor)
        self._vcpu_mmap_size = vcpu_mmap_size
        # The regions whose addresses the kernel has, referenced as long as it has them.
        self._slots: dict[int, MemoryRegion] = {}

    def close(self) -> None:
        """Close the VM; the kernel drops it when its vCPUs are closed too."""
        super().close()
        self._slots.clear()

    def check_extension(self, capability: Capability) -> int:
        """This VM's value of a capability; 0 if it is missing."""
        return ioctl(self._descriptor, Ioctl.KVM_CHECK_EXTENSION, capability)

    def enable_cap(self, capability: Capability, *arguments: int) -> None:
        """Turn on a capability, with at most four arguments."""
        request = abi.kvm_enable_cap(cap=capability)
        request.args[: len(arguments)] = list(arguments)
        ioctl(self._descriptor, Ioctl.KVM_ENABLE_CAP, request)

    def create_vcpu(self, vcpu_id: int) -> Vcpu:
        """A new vCPU; its ID is also its local APIC's."""
        descriptor = ioctl(self._descriptor, Ioctl.KVM_CREATE_VCPU, vcpu_id)
        xsave_size = max(self.check_extension(Capability.XSAVE2), sizeof(abi.kvm_xsave))
        return Vcpu(descriptor, self._vcpu_mmap_size, xsave_size)

    # Memory

    def set_user_memory_region(self, slot: int, region: MemoryRegion, flags: int = 0) -> None:
        """Give the guest a region of memory, or change the flags (`MemoryFlag`) of one."""
        request = abi.kvm_userspace_memory_region(
            slot=slot,
            flags=flags,
            guest_phys_addr=region.start,
            memory_size=region.size,
            # The region owns the mapping, and _slots keeps the region until the slot is deleted.
            userspace_addr=address_of(region.view),
        )
        ioctl(self._descriptor, Ioctl.KVM_SET_USER_MEMORY_REGION, request)
        self._slots[slot] = region

    def delete_memory_region(self, slot: int) -> None:
        """Remove a region of memory from the guest."""
        request = abi.kvm_userspace_memory_region(slot=slot)
        ioctl(self._descriptor, Ioctl.KVM_SET_USER_MEMORY_REGION, request)
        del self._slots[slot]

    def set_memory(self, memory: GuestMemory, flags: int = 0) -> None:
        """Give the guest all of its memory; flags as `MemoryFlag`.

        The regions have slots from 0 on, and each plugged block has its own.
        """
        for slot, region in enumerate(memory.fixed):
            self.set_user_memory_region(slot, region, flags)
        for block in memory.plugged:
            self.set_user_memory_region(_FIRST_BLOCK_SLOT + block, memory.block(block), flags)

    def plug_block(self, memory: GuestMemory, block: int) -> None:
        """Give the guest a block of the room behind its memory."""
        self.set_user_memory_region(_FIRST_BLOCK_SLOT + block, memory.block(block))

    def unplug_block(self, block: int) -> None:
        """Take a block from the guest."""
        self.delete_memory_region(_FIRST_BLOCK_SLOT + block)

    def get_dirty_log(self, slot: int) -> bytearray:
        """Which pages of a slot were written since the last call: a bit for each page."""
        bitmap = bytearray(_bitmap_size(self._slots[slot].size // PAGE_SIZE))
        request = abi.kvm_dirty_log(slot=slot, dirty_bitmap=address_of(bitmap))
        ioctl(self._descriptor, Ioctl.KVM_GET_DIRTY_LOG, request)
        return bitmap

    def clear_dirty_log(self, slot: int, bitmap: bytearray, first_page: int, pages: int) -> None:
        """Watch again those pages whose bits are set (with MANUAL_DIRTY_LOG_PROTECT2).

        `first_page` is a multiple of 64; the bitmap begins with its bit.
        """
        if len(bitmap) < _bitmap_size(pages):
            raise ValueError(
                f"a bitmap of {counted(len(bitmap), 'byte')} is too short for"
                f" {counted(pages, 'page')}"
            )
        request = abi.kvm_clear_dirty_log(
            slot=slot, first_page=first_page, num_pages=pages, dirty_bitmap=address_of(bitmap)
        )
        ioctl(self._descriptor, Ioctl.KVM_CLEAR_DIRTY_LOG, request)

    def set_tss_addr(self, address: int) -> None:
        """Set the address of three free pages below 4 GiB (needed by Intel processors)."""
        ioctl(self._descriptor, Ioctl.KVM_SET_TSS_ADDR, address)

    def set_identity_map_addr(self, address: int) -> None:
        """Set the address of one free page below 4 GiB (needed by Intel processors)."""
        ioctl(self._descriptor, Ioctl.KVM_SET_IDENTITY_MAP_ADDR, c_uint64(address))

    def set_boot_cpu_id(self, vcpu_id: int) -> None:
        """Set which vCPU starts; before any is created."""
        ioctl(self._descriptor, Ioctl.KVM_SET_BOOT_CPU_ID, vcpu_id)

    # Interrupts

    def create_irqchip(self) -> None:
        """Two 8259 PICs, an IOAPIC and a local APIC in each vCPU; before the vCPUs."""
        ioctl(self._descriptor, Ioctl.KVM_CREATE_IRQCHIP)

    def get_irqchip(self, chip: Irqchip) -> abi.kvm_irqchip:
        """The state of one controller."""
        state = abi.kvm_irqchip(chip_id=chip)
        ioctl(self._descriptor, Ioctl.KVM_GET_IRQCHIP, state)
        return state

    def set_irqchip(self, state: abi.kvm_irqchip) -> None:
        """Set the state of the controller that it names."""
        ioctl(self._descriptor, Ioctl.KVM_SET_IRQCHIP, state)

    def set_gsi_routing(self, routes: Sequence[Route]) -> None:
        """Set the routes of all GSIs, in place of the former ones."""
        table = Flexible.of(abi.kvm_irq_routing, abi.kvm_irq_routing_entry, len(routes))
        table.head.nr = len(routes)
        for entry, route in zip(table.entries, routes, strict=True):
            _fill_route(entry, route)
        ioctl(self._descriptor, Ioctl.KVM_SET_GSI_ROUTING, table.buffer)

    def irq_line(self, gsi: int, level: bool) -> None:
        """Set the level of an interrupt line."""
        request = abi.kvm_irq_level(irq=gsi, level=level)
        ioctl(self._descriptor, Ioctl.KVM_IRQ_LINE, request)

    def signal_msi(self, address: int, data: int) -> bool:
        """Send a message-signalled interrupt; return whether the guest took it."""
        request = abi.kvm_msi(address_lo=address & 0xFFFF_FFFF, address_hi=address >> 32, data=data)
        return ioctl(self._descriptor, Ioctl.KVM_SIGNAL_MSI, request) > 0

    def irqfd(self, eventfd: int, gsi: int, resample: int | None = None) -> None:
        """Raise a GSI whenever an eventfd is written.

        `resample` is an eventfd that the kernel writes when the guest has handled a level.
        """
        request = abi.kvm_irqfd(fd=eventfd, gsi=gsi)
        if resample is not None:
            request.flags = IrqfdFlag.RESAMPLE
            request.resamplefd = resample
        ioctl(self._descriptor, Ioctl.KVM_IRQFD, request)

    def deassign_irqfd(self, eventfd: int, gsi: int) -> None:
        """Undo `irqfd`."""
        request = abi.kvm_irqfd(fd=eventfd, gsi=gsi, flags=IrqfdFlag.DEASSIGN)
        ioctl(self._descriptor, Ioctl.KVM_IRQFD, request)

    def ioeventfd(
        self,
        eventfd: int,
        address: int,
        length: int,
        *,
        datamatch: int | None = None,
        pio: bool = False,
    ) -> None:
        """Write an eventfd, in place of an exit, when the guest writes to an address or port.

        `length` is 1, 2, 4 or 8 bytes, or 0 for any; `datamatch` the only value that counts.
        """
        request = _ioeventfd(eventfd, address, length, datamatch, pio)
        ioctl(self._descriptor, Ioctl.KVM_IOEVENTFD, request)

    def deassign_ioeventfd(
        self,
        eventfd: int,
        address: int,
        length: int,
        *,
        datamatch: int | None = None,
        pio: bool = False,
    ) -> None:
        """Undo `ioeventfd`; the arguments are the same."""
        request = _ioeventfd(eventfd, address, length, datamatch, pio)
        request.flags |= IoeventfdFlag.DEASSIGN
        ioctl(self._descriptor, Ioctl.KVM_IOEVENTFD, request)

    # Timer and clock

    def create_pit2(self, flags: int = 0) -> None:
        """An 8254 timer; after `create_irqchip`."""
        ioctl(self._descriptor, Ioctl.KVM_CREATE_PIT2, abi.kvm_pit_config(flags=flags))

    def get_pit2(self) -> abi.kvm_pit_state2:
        """The state of the timer."""
        state = abi.kvm_pit_state2()
        ioctl(self._descriptor, Ioctl.KVM_GET_PIT2, state)
        return state

    def set_pit2(self, state: abi.kvm_pit_state2) -> None:
        """Set the state of the timer."""
        ioctl(self._descriptor, Ioctl.KVM_SET_PIT2, state)

    def reinject_control(self, reinject: bool) -> None:
        """Set whether the kernel repeats ticks of the timer that the guest missed."""
        request = abi.kvm_reinject_control(pit_reinject=reinject)
        ioctl(self._descriptor, Ioctl.KVM_REINJECT_CONTROL, request)

    def get_clock(self) -> abi.kvm_clock_data:
        """The guest's kvm-clock, in nanoseconds."""
        clock = abi.kvm_clock_data()
        ioctl(self._descriptor, Ioctl.KVM_GET_CLOCK, clock)
        return clock

    def set_clock(self, nanoseconds: int, *, realtime: int | None = None) -> None:
        """Set kvm-clock.

        With `realtime`, the host's real time in nanoseconds when the value was read, the guest's
        clock is moved on by the time that has passed since.
        """
        clock = abi.kvm_clock_data(clock=nanoseconds)
        if realtime is not None:
            clock.flags = ClockFlag.REALTIME
            clock.realtime = realtime
        ioctl(self._descriptor, Ioctl.KVM_SET_CLOCK, clock)

    def get_stats(self) -> Statistics:
        """The kernel's statistics of this VM."""
        return read_stats(self._descriptor)


def _fill_route(entry: abi.kvm_irq_routing_entry, route: Route) -> None:
    entry.gsi = route.gsi
    if isinstance(route, IrqchipRoute):
        entry.type = RoutingType.IRQCHIP
        entry.u.irqchip.irqchip = route.irqchip
        entry.u.irqchip.pin = route.pin
        return
    entry.type = RoutingType.MSI
    entry.u.msi.address_lo = route.address & 0xFFFF_FFFF
    entry.u.msi.address_hi = route.address >> 32
    entry.u.msi.data = route.data


def _ioeventfd(
    eventfd: int, address: int, length: int, datamatch: int | None, pio: bool
) -> abi.kvm_ioeventfd:
    request = abi.kvm_ioeventfd(fd=eventfd, addr=address, len=length)
    if datamatch is not None:
        request.datamatch = datamatch
        request.flags |= IoeventfdFlag.DATAMATCH
    if pio:
        request.flags |= IoeventfdFlag.PIO
    return request


def _bitmap_size(pages: int) -> int:
    """Bytes of a bitmap of pages, in whole 64-bit words, as the kernel writes them."""
    return (pages + 63) // 64 * 8
