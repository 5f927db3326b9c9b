"""What it costs when a guest needs the monitor: exits, doorbells and interrupts; QEMU beside us.

The guest asks from ring 3, again and again, and counts the time itself. A port read goes to the
serial port, a memory read to where nobody answers; both leave the kernel, and are answered by
Python or by QEMU. A doorbell does not: the kernel writes an eventfd, and the entropy device's queue
is served by whoever waits for that. An interrupt is sent by writing an eventfd (irqfd) to a guest
that halts, whose handler makes an exit.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass

from _guest import Guests
from _measure import Sample, in_turn, print_table
from _native import machines
from cerne.kvm.abi import Irqchip, kvm_regs
from cerne.kvm.exits import IoExit
from cerne.kvm.kvm import Kvm
from cerne.kvm.memory import GuestAddress, GuestMemory
from cerne.kvm.vcpu import Vcpu, handle_kicks
from cerne.kvm.vm import IrqchipRoute, Vm

_RUNS = 5
_EXITS = 20_000
_BELLS = 5_000
_INTERRUPTS = 300
_RNG = ("-device", "virtio-rng-pci,disable-legacy=on")


@dataclass(frozen=True, slots=True)
class _Case:
    what: str
    command: str
    count: int
    arguments: tuple[str, ...] = ()


_CASES = (
    _Case("port read, answered by the monitor", "port", _EXITS),
    _Case("memory read, answered by the monitor", "mmio", _EXITS),
    _Case("doorbell, queue served, seen by the guest", "bell", _BELLS, _RNG),
)


def main() -> None:
    """Measure, and print the table."""
    with machines() as made:
        rows = [_row(Guests(made), case) for case in _CASES]
    rows.append(
        ("interrupt by eventfd to a halted guest, to its exit", _interrupts().text(1e6), "—")
    )
    print_table(
        f"From a guest to the monitor: µs, median of {_RUNS}", ("what", "Cerne", "QEMU"), rows
    )


def _row(guests: Guests, case: _Case) -> tuple[str, str, str]:
    command = f"{case.command} {case.count}"
    ours, theirs = in_turn(
        _RUNS,
        lambda: guests.native(command).seconds / case.count,
        lambda: guests.qemu(command, *case.arguments).seconds / case.count,
    )
    return case.what, ours.text(1e6), theirs.text(1e6)


# Real mode: the first interrupt controller's ICW1 to ICW4 and mask, a write to port 0x11, and hlt
# for ever; the handler writes to port 0x10, ends the interrupt and returns.
_HALT = bytes.fromhex("b011e620 b020e621 b004e621 b001e621 b000e621 e611 fb f4 ebfd")
_HANDLER = bytes.fromhex("e610 b020 e620 cf")
_CODE, _HANDLER_AT, _LINE = 0x1000, 0x2000, 5


def _interrupts() -> Sample:
    handle_kicks()
    trigger = os.eventfd(0)
    with (
        GuestMemory.anonymous([(GuestAddress(0), 0x10000)]) as memory,
        Kvm() as kvm,
        kvm.create_vm() as vm,
    ):
        vm.set_memory(memory)
        vm.create_irqchip()
        with vm.create_vcpu(0) as vcpu:
            _prepare(vm, vcpu, memory)
            vm.irqfd(trigger, 24)
            sample = _time_interrupts(vcpu, trigger)
            vm.deassign_irqfd(trigger, 24)
    os.close(trigger)
    return sample


def _prepare(vm: Vm, vcpu: Vcpu, memory: GuestMemory) -> None:
    memory.write(_CODE, _HALT)
    memory.write(_HANDLER_AT, _HANDLER)
    memory.write_u32(4 * (0x20 + _LINE), _HANDLER_AT)
    vm.set_gsi_routing([IrqchipRoute(24, Irqchip.PIC_MASTER, _LINE)])
    sregs = vcpu.get_sregs()
    sregs.cs.base = sregs.cs.selector = 0
    vcpu.set_sregs(sregs)
    vcpu.set_regs(kvm_regs(rip=_CODE, rsp=0x8000, rflags=2))
    vcpu.run()


def _time_interrupts(vcpu: Vcpu, trigger: int) -> Sample:
    arrived = threading.Semaphore(0)
    times: list[float] = []
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            if isinstance(vcpu.run(), IoExit):
                times.append(time.perf_counter())
                arrived.release()

    thread = threading.Thread(target=run)
    thread.start()
    taken = []
    for _ in range(_INTERRUPTS):
        time.sleep(0.002)
        begun = time.perf_counter()
        os.eventfd_write(trigger, 1)
        arrived.acquire()
        taken.append(times[-1] - begun)
    stop.set()
    vcpu.kick()
    thread.join()
    return Sample(tuple(taken))


if __name__ == "__main__":
    main()
