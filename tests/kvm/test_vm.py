"""Virtual machines on the real /dev/kvm: memory, interrupts, clock, state, fork."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cerne.errors import DamagedError, KvmError
from cerne.kvm import exits
from cerne.kvm.abi import Capability, Irqchip, MemoryFlag
from cerne.kvm.kvm import Kvm
from cerne.kvm.memory import PAGE_SIZE, GuestAddress, GuestMemory
from cerne.kvm.state import VcpuState, VmState, restore_vcpu, restore_vm, save_vcpu, save_vm
from cerne.kvm.vcpu import Vcpu
from cerne.kvm.vm import IrqchipRoute, MsiRoute, Vm

Load = Callable[[str], Vcpu]

HALT = "f4"
# Set up the first PIC at vector 0x20 with all lines open; then halt until interrupted, for ever.
WAIT_FOR_INTERRUPTS = (
    "b011 e620 b020 e621 b004 e621 b001 e621 b000 e621"  # ICW1 to ICW4, mask
    "b000 e611"  # out 0x11, al: ready
    "fb f4 ebfd"  # sti; hlt; jmp to it
)
# mov al, 0x20; out 0x20, al; mov al, 'i'; out 0x10, al; iret
HANDLER = "b020 e620 b069 e610 cf"
COUNT = "b000 fec0 e610 ebfa"  # mov al, 0; then inc al; out 0x10, al; for ever


def test_the_host_is_asked_what_it_can(kvm: Kvm) -> None:
    assert kvm.get_api_version() == 12
    assert kvm.check_extension(Capability.USER_MEMORY) == 1
    assert kvm.get_vcpu_mmap_size() >= 2352
    assert 0xC000_0081 in kvm.get_msr_index_list()
    features = kvm.get_msr_feature_index_list()
    assert set(kvm.get_msrs(features)) <= set(features)
    assert {leaf.function for leaf in kvm.get_supported_cpuid()} >= {0, 1, 0x8000_0000}


def test_pages_that_the_guest_writes_are_told_once(vm: Vm, load: Load) -> None:
    vcpu = load("a20050" + HALT)  # mov [0x5000], al
    vm.get_dirty_log(0)
    assert vcpu.run() == exits.HltExit()
    assert int.from_bytes(vm.get_dirty_log(0), "little") == 1 << (0x5000 // PAGE_SIZE)
    assert not any(vm.get_dirty_log(0))


def test_pages_are_watched_again_when_they_are_cleared(kvm: Kvm, load: Load, vm: Vm) -> None:
    vm.enable_cap(Capability.MANUAL_DIRTY_LOG_PROTECT2, 1)
    vcpu = load("a20050 e610 a20050" + HALT)
    vcpu.run()
    dirty = vm.get_dirty_log(0)
    assert dirty == vm.get_dirty_log(0)
    vm.clear_dirty_log(0, dirty, 0, 16)
    assert not any(vm.get_dirty_log(0))
    vcpu.run()
    assert int.from_bytes(vm.get_dirty_log(0), "little") & 1 << (0x5000 // PAGE_SIZE)
    with pytest.raises(ValueError, match="too short"):
        vm.clear_dirty_log(0, bytearray(1), 0, 16)


def test_a_region_can_be_taken_away(vm: Vm, memory: GuestMemory) -> None:
    with GuestMemory.anonymous([(GuestAddress(1 << 32), PAGE_SIZE)]) as more:
        vm.set_user_memory_region(1, more.regions[0], MemoryFlag.READONLY)
        vm.delete_memory_region(1)
        vm.set_user_memory_region(1, more.regions[0])
        vm.delete_memory_region(1)


def test_regions_that_overlap_are_refused(vm: Vm, memory: GuestMemory) -> None:
    with pytest.raises(KvmError, match="KVM_SET_USER_MEMORY_REGION"):
        vm.set_user_memory_region(1, memory.regions[0])


@pytest.mark.parametrize("datamatch", [None, 0x41])
def test_a_port_rings_an_eventfd_in_place_of_an_exit(
    vm: Vm, load: Load, datamatch: int | None
) -> None:
    bell = os.eventfd(0)
    try:
        vm.ioeventfd(bell, 0x10, 1, datamatch=datamatch, pio=True)
        assert load("b041 e610" + HALT).run() == exits.HltExit()
        assert os.eventfd_read(bell) == 1
        vm.deassign_ioeventfd(bell, 0x10, 1, datamatch=datamatch, pio=True)
    finally:
        os.close(bell)


def interrupts(vcpu: Vcpu, memory: GuestMemory, line: int) -> None:
    """Give the guest a handler of a line and run it till it waits."""
    memory.write(0x3000, bytes.fromhex(HANDLER))
    memory.write_u32(4 * (0x20 + line), 0x3000)
    stop = vcpu.run()
    assert isinstance(stop, exits.IoExit)
    assert stop.port == 0x11


def test_an_eventfd_interrupts_the_guest(vm: Vm, load: Load, memory: GuestMemory) -> None:
    vm.create_irqchip()
    vcpu = load(WAIT_FOR_INTERRUPTS)
    vm.set_gsi_routing([IrqchipRoute(24, Irqchip.PIC_MASTER, 5), MsiRoute(25, 0xFEE0_0000, 0x40)])
    interrupts(vcpu, memory, 5)
    trigger = os.eventfd(0)
    try:
        vm.irqfd(trigger, 24)
        os.eventfd_write(trigger, 1)
        stop = vcpu.run()
        assert isinstance(stop, exits.IoExit)
        assert (stop.port, stop.value) == (0x10, ord("i"))
        vm.deassign_irqfd(trigger, 24)
    finally:
        os.close(trigger)


def test_a_line_interrupts_the_guest(vm: Vm, load: Load, memory: GuestMemory) -> None:
    vm.create_irqchip()
    vcpu = load(WAIT_FOR_INTERRUPTS)
    interrupts(vcpu, memory, 4)
    vm.irq_line(4, True)
    stop = vcpu.run()
    assert isinstance(stop, exits.IoExit)
    assert (stop.port, stop.value) == (0x10, ord("i"))
    vm.irq_line(4, False)


def test_the_clock_is_set_and_goes_on(vm: Vm) -> None:
    vm.set_clock(10**15)
    assert 10**15 <= vm.get_clock().clock < 2 * 10**15


def test_the_timer_is_made_and_kept(vm: Vm) -> None:
    vm.create_irqchip()
    vm.create_pit2()
    vm.reinject_control(False)
    state = vm.get_pit2()
    vm.set_pit2(state)
    assert vm.get_pit2().channels[0].mode == state.channels[0].mode


def test_statistics_of_a_machine_are_told(vm: Vm) -> None:
    assert "remote_tlb_flush" in vm.get_stats()


def count(vcpu: Vcpu, times: int) -> list[int]:
    """What the counting guest says, so many times."""
    said = []
    for _ in range(times):
        stop = vcpu.run()
        assert isinstance(stop, exits.IoExit)
        said.append(stop.value)
    return said


@pytest.fixture
def counting(kvm: Kvm, vm: Vm, load: Load) -> Vcpu:
    """A guest that has counted to 3, on a machine with all controllers."""
    vm.create_irqchip()
    vm.create_pit2()
    vcpu = load(COUNT)
    vcpu.set_cpuid2(kvm.get_supported_cpuid())
    assert count(vcpu, 3) == [1, 2, 3]
    vcpu.complete_exit()
    return vcpu


def test_a_saved_machine_goes_on_in_another(
    kvm: Kvm, vm: Vm, counting: Vcpu, memory: GuestMemory
) -> None:
    saved = save_vcpu(counting, kvm.get_msr_index_list())
    machine = save_vm(vm)
    assert count(counting, 2) == [4, 5]
    with kvm.create_vm() as other:
        other.set_memory(memory)
        other.create_irqchip()
        other.create_pit2()
        with other.create_vcpu(0) as vcpu:
            restore_vcpu(vcpu, saved)
            restore_vm(other, machine)
            again = save_vcpu(vcpu, sorted(saved.msrs))
            assert (again.regs, again.sregs) == (saved.regs, saved.sregs)
            assert again.cpuid == saved.cpuid
            assert count(vcpu, 3) == [4, 5, 6]


@pytest.mark.parametrize(
    "group", ["cpuid", "regs", "sregs", "xsave", "xcrs", "debugregs", "lapic", "vcpu_events"]
)
def test_damaged_state_is_refused(kvm: Kvm, counting: Vcpu, group: str) -> None:
    saved = save_vcpu(counting, kvm.get_msr_index_list())
    damaged: VcpuState = saved._replace(**{group: getattr(saved, group)[:-1]})
    with pytest.raises(DamagedError):
        restore_vcpu(counting, damaged)
    with pytest.raises(DamagedError):
        restore_vcpu(counting, saved._replace(mp_state=99))


def test_a_forked_child_goes_on_in_a_machine_of_its_own(
    kvm: Kvm, vm: Vm, counting: Vcpu, memory: GuestMemory
) -> None:
    saved = save_vcpu(counting, kvm.get_msr_index_list())
    machine = save_vm(vm)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if _counts_on(kvm, saved, machine, memory) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert memory.read(0x6000, 5) == bytes(5)
    assert count(counting, 2) == [4, 5]


def _counts_on(kvm: Kvm, saved: VcpuState, machine: VmState, memory: GuestMemory) -> bool:
    memory.write(0x6000, b"child")
    with kvm.create_vm() as vm:
        vm.set_memory(memory)
        vm.create_irqchip()
        vm.create_pit2()
        with vm.create_vcpu(0) as vcpu:
            restore_vcpu(vcpu, saved)
            restore_vm(vm, machine)
            return count(vcpu, 2) == [4, 5]  # by the /dev/kvm that its parent opened


def test_a_device_that_is_not_there_says_what_makes_it_appear(tmp_path: Path) -> None:
    with pytest.raises(KvmError, match="there is no") as caught:
        Kvm(tmp_path / "kvm")
    assert caught.value.hint


def test_a_file_that_is_no_kvm_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "kvm"
    file.touch()
    with pytest.raises(KvmError, match="KVM_GET_API_VERSION"):
        Kvm(file)


def test_a_closed_descriptor_stays_closed(kvm: Kvm) -> None:
    vm = kvm.create_vm()
    vm.close()
    vm.close()
    assert vm.fileno() == -1
