"""Small guests in real mode, for the tests of the KVM binding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cerne.kvm.abi import MemoryFlag, kvm_regs
from cerne.kvm.kvm import Kvm
from cerne.kvm.memory import GuestAddress, GuestMemory
from cerne.kvm.vcpu import Vcpu, handle_kicks
from cerne.kvm.vm import Vm

MEMORY_SIZE = 0x10000
CODE = 0x1000


@pytest.fixture
def kvm(kvm_device: Path) -> Iterator[Kvm]:
    with Kvm(kvm_device) as kvm:
        yield kvm


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory.anonymous([(GuestAddress(0), MEMORY_SIZE)]) as memory:
        yield memory


@pytest.fixture
def vm(kvm: Kvm, memory: GuestMemory) -> Iterator[Vm]:
    with kvm.create_vm() as vm:
        vm.set_memory(memory, MemoryFlag.LOG_DIRTY_PAGES)
        yield vm


@pytest.fixture
def load(vm: Vm, memory: GuestMemory) -> Iterator[Callable[[str], Vcpu]]:
    """Makes the VM's vCPU, at the first of some bytes of 16-bit code, given in hexadecimal."""
    handle_kicks()
    with ExitStack() as stack:

        def load(code: str) -> Vcpu:
            memory.write(CODE, bytes.fromhex(code))
            vcpu = stack.enter_context(vm.create_vcpu(0))
            sregs = vcpu.get_sregs()
            sregs.cs.base = sregs.cs.selector = 0
            vcpu.set_sregs(sregs)
            vcpu.set_regs(kvm_regs(rip=CODE, rsp=0x8000, rflags=2))
            return vcpu

        yield load
