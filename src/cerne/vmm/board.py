"""The board of a machine: its KVM VM with memory, interrupts and vCPUs, and the fixed devices.

`cerne.arch.x86.layout` has the addresses of its devices: a serial port, a clock, a keyboard
controller for resets, ACPI's power registers. Other modules add PCI devices.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from cerne.arch.x86 import layout
from cerne.arch.x86.acpi.tables import write_tables
from cerne.arch.x86.bootparams import (
    memory_map,
    write_command_line,
    write_pvh_info,
    write_zero_page,
)
from cerne.arch.x86.cpu import set_entry
from cerne.arch.x86.cpuid import guest_cpuid
from cerne.arch.x86.kernel import Protocol, load_initrd, load_kernel
from cerne.arch.x86.mptable import write_mp_table
from cerne.devices.bus import Bus
from cerne.devices.cpu_hotplug import REGISTERS as CPU_REGISTERS
from cerne.devices.cpu_hotplug import CpuHotplug
from cerne.devices.i8042 import I8042, PORTS
from cerne.devices.power import CPUS_CHANGED, Power
from cerne.devices.power import REGISTERS as POWER_REGISTERS
from cerne.devices.rtc import Rtc
from cerne.devices.serial import REGISTERS as SERIAL_REGISTERS
from cerne.devices.serial import Serial
from cerne.devices.state import PlainState, SavedState
from cerne.errors import DamagedError
from cerne.kvm.abi import kvm_cpuid_entry2
from cerne.kvm.kvm import Kvm
from cerne.kvm.memory import GuestMemory
from cerne.kvm.state import restore_vcpu, restore_vm, save_vcpu, save_vm
from cerne.kvm.vcpu import Vcpu
from cerne.vmm.processor_state import plain_vcpu, plain_vm, vcpu_state, vm_state
from cerne.vmm.vcpu import Buses

_I8042_PORT, _RTC_PORT = 0x60, 0x70
_PIT_SPEAKER_DUMMY = 1
_MISC_ENABLE, _FAST_STRINGS = 0x1A0, 1
_SIGNATURE = 1


class GuestRequests(NamedTuple):
    """The functions that the board calls at the guest's requests."""

    power_off: Callable[[], None]
    reset: Callable[[], None]
    panicked: Callable[[], None]
    """Its kernel panicked."""
    crash_loaded: Callable[[], None]
    """Its kernel panicked, and a crash kernel takes over."""
    console: Callable[[bytes], None]


class Line:
    """An interrupt line of the board to the kernel's interrupt controllers."""

    def __init__(self, board: Board, gsi: int) -> None:
        self._board = board
        self._gsi = gsi
        self._level = False

    def set(self, level: bool) -> None:
        """Raise or lower it."""
        if level != self._level:
            self._level = level
            self._board.vm.irq_line(self._gsi, level)


class Board:
    """A machine's processors and fixed devices; the caller keeps the memory."""

    def __init__(
        self,
        kvm: Kvm,
        memory: GuestMemory,
        cpus: int,
        wishes: GuestRequests,
        change_cpuid: Callable[[Sequence[kvm_cpuid_entry2]], None] = lambda leaves: None,
        most_cpus: int = 0,
    ) -> None:
        """Assemble it; `change_cpuid` may change the CPUID of each processor.

        With `most_cpus` further processors may come, up to so many altogether.
        """
        self.memory = memory
        self.wishes = wishes
        self._kvm = kvm
        self._cpus = cpus
        self._most_cpus = most_cpus
        self._change_cpuid = change_cpuid
        self._msrs = kvm.get_msr_index_list()
        self._make_vm()
        self.buses = Buses(Bus(), Bus())
        self.serial = Serial(Line(self, layout.SERIAL_IRQ), wishes.console)
        self.power = Power(Line(self, layout.POWER_IRQ), wishes.power_off, wishes.reset)
        self._rtc = Rtc()
        self._keyboard = I8042(wishes.reset)
        ports = self.buses.ports
        ports.insert(layout.SERIAL_PORT, SERIAL_REGISTERS, self.serial)
        ports.insert(layout.POWER_PORT, POWER_REGISTERS, self.power)
        ports.insert(_RTC_PORT, 2, self._rtc)
        # Port 0x61, between the controller's ports, belongs to the kernel's timer.
        ports.insert(_I8042_PORT, PORTS, self._keyboard)
        self._processors = CpuHotplug(cpus) if most_cpus else None
        if self._processors is not None:
            ports.insert(layout.CPU_PORT, CPU_REGISTERS, self._processors)
        self._at_power_on = self._devices_state()

    def load(self, kernel: int, initrd: int | None, command_line: str, *, mp_table: bool) -> None:
        """Put a kernel and its parameters into memory, and set the first vCPU to its entry.

        The kernel and its initrd are descriptors, which the caller closes.

        Raises:
            ImageError, InputError: the kernel or its command line is not valid.
        """
        write_command_line(self.memory, command_line)
        loaded = load_kernel(self.memory, kernel)
        ramdisk = None if initrd is None else load_initrd(self.memory, initrd, loaded)
        entries = memory_map(self.memory.fixed_size)
        rsdp = write_tables(self.memory, len(self.vcpus), most=self._most_cpus)
        if mp_table:
            possible = max(len(self.vcpus), self._most_cpus)
            write_mp_table(self.memory, possible, self._signature())
        if loaded.protocol is Protocol.PVH:
            write_pvh_info(self.memory, entries, ramdisk, rsdp)
        else:
            write_zero_page(self.memory, loaded.setup_header, entries, ramdisk, rsdp)
        first = self.vcpus[0]
        regs, sregs = first.get_regs(), first.get_sregs()
        set_entry(self.memory, loaded, sregs, regs)
        first.set_sregs(sregs)
        first.set_regs(regs)

    def add_vcpus(self, count: int) -> list[Vcpu]:
        """Make vCPUs until there are so many; return the new ones. `announce_vcpus` follows.

        Raises:
            KvmError: the kernel makes no other vCPU.
        """
        with contextlib.ExitStack() as stack:
            new = [self._vcpu(stack, index) for index in range(len(self.vcpus), count)]
            for vcpu in new:
                # The kernel finds a vCPU by the ID of its APIC only after one's state was set.
                vcpu.set_lapic(vcpu.get_lapic())
            self._resources.enter_context(stack.pop_all())
        self.vcpus += new
        self._cpus = len(self.vcpus)
        return new

    def announce_vcpus(self) -> None:
        """Tell the guest of all vCPUs."""
        if self._processors is not None:
            self._processors.add(self._cpus)
            self.power.signal(CPUS_CHANGED)

    def let_ticks_be_missed(self) -> None:
        """Drop ticks of the timer that came while the guest did not run.

        This may take 15 ms, while the kernel waits for its own readers.
        """
        self.vm.reinject_control(False)

    def state(self) -> PlainState:
        """The state of processors, kernel devices and fixed devices; no vCPU may be running."""
        return {
            "vcpus": [plain_vcpu(save_vcpu(vcpu, self._msrs)) for vcpu in self.vcpus],
            "vm": plain_vm(save_vm(self.vm)),
            **self._devices_state(),
        }

    def power_on(self) -> None:
        """Return to the state of power-on: a new VM over the same memory, zeroed; no vCPU runs.

        The registrations of the old VM (other memory, interrupts, doorbells) are lost.

        Raises:
            KvmError: the kernel makes no other VM.
            HostError: the kernel gives no memory.
        """
        self._resources.close()
        self.memory.clear()
        self._make_vm()
        present = {"processors": CpuHotplug(self._cpus).state()}
        self._restore_devices(SavedState("a machine", {**self._at_power_on, **present}))

    def restore(self, state: PlainState) -> None:
        """Restore `state` over the memory of that time, before any vCPU runs.

        Raises:
            DamagedError: the state is not valid.
            KvmError: the kernel refuses it.
        """
        saved = SavedState("a machine", state)
        # Restored before the devices, which raise or lower their lines.
        restore_vm(self.vm, vm_state(saved.section("vm")))
        self._restore_devices(saved)
        vcpus = saved.sections("vcpus", len(self.vcpus))
        for vcpu, values in zip(self.vcpus, vcpus, strict=True):
            restore_vcpu(vcpu, vcpu_state(values))

    def close(self) -> None:
        """Release everything; no vCPU may be running."""
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _devices_state(self) -> PlainState:
        processors = self._processors
        return {
            **({} if processors is None else {"processors": processors.state()}),
            "serial": self.serial.state(),
            "power": self.power.state(),
            "rtc": self._rtc.state(),
            "keyboard": self._keyboard.state(),
        }

    def _restore_devices(self, saved: SavedState) -> None:
        if self._processors is not None:
            self._processors.restore(saved.plain("processors"))
            if self._processors.present != len(self.vcpus):
                raise DamagedError("the saved machine says another number of its processors")
        self.serial.restore(saved.plain("serial"))
        self.power.restore(saved.plain("power"))
        self._rtc.restore(saved.plain("rtc"))
        self._keyboard.restore(saved.plain("keyboard"))

    def _make_vm(self) -> None:
        with contextlib.ExitStack() as stack:
            self.vm = self._kvm.create_vm()
            stack.callback(self.vm.close)
            self._set_up_vm()
            self.vcpus = [self._vcpu(stack, index) for index in range(self._cpus)]
            self._resources = stack.pop_all()

    def _set_up_vm(self) -> None:
        self.vm.set_tss_addr(layout.TSS)
        self.vm.set_identity_map_addr(layout.IDENTITY_MAP)
        # First, because with an interrupt controller the kernel waits for its own readers, 7 ms.
        self.vm.set_memory(self.memory)
        self.vm.create_irqchip()
        self.vm.create_pit2(_PIT_SPEAKER_DUMMY)

    def _vcpu(self, stack: contextlib.ExitStack, index: int) -> Vcpu:
        vcpu = self.vm.create_vcpu(index)
        stack.callback(vcpu.close)
        vcpu.count_exits()
        leaves = guest_cpuid(self._kvm.get_supported_cpuid(), index, self._possible)
        self._change_cpuid(leaves)
        vcpu.set_cpuid2(leaves)
        vcpu.set_msrs({_MISC_ENABLE: _FAST_STRINGS})
        return vcpu

    @property
    def _possible(self) -> int:
        """The number of processors that may be there; those that are there know it at once."""
        return max(self._cpus, self._most_cpus)

    def _signature(self) -> int:
        leaves = self.vcpus[0].get_cpuid2()
        return next(leaf.eax for leaf in leaves if leaf.function == _SIGNATURE)
