"""vCPUs on the real /dev/kvm, with guests of a few bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

import pytest

from cerne.errors import KvmError
from cerne.kvm import exits
from cerne.kvm.abi import KVM_MAX_XCRS, GuestDebug, MpState
from cerne.kvm.kvm import Kvm
from cerne.kvm.memory import GuestMemory
from cerne.kvm.vcpu import Vcpu
from cerne.kvm.vm import Vm

Load = Callable[[str], Vcpu]

HALT = "f4"
FOREVER = "ebfe"


def test_a_guest_writes_to_a_port_and_halts(load: Load) -> None:
    vcpu = load("b041 e610" + HALT)  # mov al, 'A'; out 0x10, al
    stop = vcpu.run()
    assert isinstance(stop, exits.IoExit)
    assert (stop.port, stop.size, stop.is_write, stop.value) == (0x10, 1, True, ord("A"))
    assert vcpu.run() == exits.HltExit()


def test_a_guest_reads_a_port(load: Load, memory: GuestMemory) -> None:
    vcpu = load("e510 a30050" + HALT)  # in ax, 0x10; mov [0x5000], ax
    stop = vcpu.run()
    assert isinstance(stop, exits.IoExit)
    assert (stop.size, stop.is_write) == (2, False)
    stop.answer(0x12345)
    assert vcpu.run() == exits.HltExit()
    assert memory.read_u16(0x5000) == 0x2345


def test_a_string_is_written_to_a_port(load: Load, memory: GuestMemory) -> None:
    memory.write(0x2000, b"hello")
    # mov si, 0x2000; mov cx, 5; mov dx, 0x10; rep outsb
    vcpu = load("be0020 b90500 ba1000 f36e" + HALT)
    written = b""
    while isinstance(stop := vcpu.run(), exits.IoExit):
        assert len(stop.data) == stop.size * stop.repeat
        written += bytes(stop.data)
    assert written == b"hello"
    assert stop == exits.HltExit()


def test_memory_mapped_io_goes_both_ways(load: Load, memory: GuestMemory) -> None:
    # mov al, [0]; inc al; mov [0], al, in a segment without memory
    vcpu = load("a00000 fec0 a20000" + HALT)
    sregs = vcpu.get_sregs()
    sregs.ds.base = 0xD0000
    vcpu.set_sregs(sregs)
    stop = vcpu.run()
    assert isinstance(stop, exits.MmioExit)
    assert (stop.address, len(stop.data), stop.is_write) == (0xD0000, 1, False)
    stop.answer(41)
    stop = vcpu.run()
    assert isinstance(stop, exits.MmioExit)
    assert (stop.is_write, stop.value) == (True, 42)
    assert vcpu.run() == exits.HltExit()


def test_a_triple_fault_is_a_shutdown(load: Load) -> None:
    vcpu = load("b8f8ff 8ed8")  # mov ax, 0xfff8; mov ds, ax: a fault that nothing handles
    sregs = vcpu.get_sregs()
    sregs.cr0 |= 1
    sregs.idt.limit = 0
    vcpu.set_sregs(sregs)
    assert vcpu.run() == exits.ShutdownExit()


def test_a_kick_takes_a_vcpu_out_of_the_guest(load: Load) -> None:
    vcpu = load("e610" + FOREVER)
    assert isinstance(vcpu.run(), exits.IoExit)
    stops: list[exits.Exit] = []
    thread = threading.Thread(target=lambda: stops.append(vcpu.run()))
    thread.start()
    while thread.is_alive():
        vcpu.kick()
        thread.join(0.05)
    assert stops == [exits.InterruptedExit()]


def test_a_kick_before_the_guest_runs_is_not_lost(load: Load) -> None:
    vcpu = load(FOREVER)
    vcpu.kick()
    assert vcpu.run() == exits.InterruptedExit()


def test_an_answer_is_taken_without_running_on(load: Load) -> None:
    vcpu = load("e410" + FOREVER)  # in al, 0x10
    stop = vcpu.run()
    assert isinstance(stop, exits.IoExit)
    stop.answer(0x77)
    vcpu.complete_exit()
    regs = vcpu.get_regs()
    assert (regs.rax & 0xFF, regs.rip) == (0x77, 0x1002)


def test_single_steps_stop_the_guest(load: Load) -> None:
    vcpu = load("90 90" + HALT)
    vcpu.set_guest_debug(GuestDebug.ENABLE | GuestDebug.SINGLESTEP)
    stop = vcpu.run()
    assert isinstance(stop, exits.DebugExit)
    assert (stop.exception, stop.pc) == (1, 0x1001)


def test_state_groups_come_back_as_they_were_set(kvm: Kvm, load: Load) -> None:
    vcpu = load(HALT)
    vcpu.set_cpuid2(kvm.get_supported_cpuid())
    leaves = {(leaf.function, leaf.index) for leaf in kvm.get_supported_cpuid()}
    assert {(leaf.function, leaf.index) for leaf in vcpu.get_cpuid2()} <= leaves
    regs = vcpu.get_regs()
    regs.r15 = 0x1234_5678_9ABC_DEF0
    vcpu.set_regs(regs)
    assert bytes(vcpu.get_regs()) == bytes(regs)
    sregs = vcpu.get_sregs()
    vcpu.set_sregs(sregs)
    assert bytes(vcpu.get_sregs()) == bytes(sregs)
    vcpu.set_sregs2(vcpu.get_sregs2())
    fpu = vcpu.get_fpu()
    fpu.xmm[3][0] = 0x5A
    vcpu.set_fpu(fpu)
    assert vcpu.get_fpu().xmm[3][0] == 0x5A
    xsave = vcpu.get_xsave()
    vcpu.set_xsave(xsave)
    assert vcpu.get_xsave() == xsave
    xcrs = vcpu.get_xcrs()
    assert xcrs.nr_xcrs <= KVM_MAX_XCRS
    vcpu.set_xcrs(xcrs)
    debugregs = vcpu.get_debugregs()
    debugregs.db[0] = 0x4000
    vcpu.set_debugregs(debugregs)
    assert vcpu.get_debugregs().db[0] == 0x4000
    events = vcpu.get_vcpu_events()
    vcpu.set_vcpu_events(events)
    assert vcpu.get_tsc_khz() > 0


def test_a_vcpu_can_be_told_to_wait(vm: Vm, load: Load) -> None:
    vm.create_irqchip()
    vcpu = load(HALT)
    assert vcpu.get_mp_state() == MpState.RUNNABLE
    vcpu.set_mp_state(MpState.HALTED)
    assert vcpu.get_mp_state() == MpState.HALTED
    vcpu.set_lapic(vcpu.get_lapic())


def test_registers_that_cannot_be_read_are_left_out(kvm: Kvm, load: Load) -> None:
    vcpu = load(HALT)
    star, unknown, lstar = 0xC000_0081, 0xDEAD_0000, 0xC000_0082
    with suppress(KvmError):
        # Some hosts ignore unknown registers (kvm.ignore_msrs).
        vcpu.set_msrs({star: 5 << 32, lstar: 0x1000, unknown: 1})
    values = vcpu.get_msrs([star, unknown, lstar])
    assert (values[star], values[lstar]) == (5 << 32, 0x1000)


def test_a_register_that_is_refused_is_named(load: Load) -> None:
    vcpu = load(HALT)
    with pytest.raises(KvmError, match="0xc0000080"):
        vcpu.set_msrs({0xC000_0081: 0, 0xC000_0080: 1 << 63})


def test_addresses_are_translated(load: Load) -> None:
    translation = load(HALT).translate(0x1234)
    assert (translation.valid, translation.physical_address) == (1, 0x1234)


def test_statistics_are_told_by_name(load: Load) -> None:
    vcpu = load("e610" + HALT)
    vcpu.run()
    assert vcpu.get_stats()["exits"] != 0


def test_exits_are_counted_from_any_thread(load: Load) -> None:
    vcpu = load("e610" + HALT)
    vcpu.count_exits()
    before = vcpu.exit_count
    vcpu.run()
    after = vcpu.exit_count
    assert before == 0
    assert after is not None
    assert after > before


def test_an_extended_state_of_another_size_is_refused(load: Load) -> None:
    with pytest.raises(ValueError, match="XSAVE"):
        load(HALT).set_xsave(bytes(100))
