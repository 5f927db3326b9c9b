"""Message interrupts that a backend sends: none while masked, and none is lost."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cerne.kvm.kvm import Kvm
from cerne.kvm.vcpu import Vcpu
from cerne.vmm.interrupts import Interrupts, MessageVectors

_LAPIC = 0xFEE00000
_SPURIOUS, _ENABLED = 0xF1, 1
_REQUESTS = 0x200

Eventually = Callable[[Callable[[], bool]], None]


@pytest.fixture
def vcpu_and_vectors(kvm_device: Path) -> Iterator[tuple[Vcpu, MessageVectors]]:
    with Kvm(kvm_device) as kvm, kvm.create_vm() as vm:
        vm.create_irqchip()
        vectors = MessageVectors(Interrupts(vm), 2)
        with contextlib.closing(vectors), vm.create_vcpu(0) as vcpu:
            lapic = vcpu.get_lapic()
            lapic.regs[_SPURIOUS] |= _ENABLED
            vcpu.set_lapic(lapic)
            yield vcpu, vectors


def _requested(vcpu: Vcpu, interrupt: int) -> bool:
    """Whether the processor has been asked for an interrupt, which it never takes here."""
    word, bit = divmod(interrupt, 32)
    return bool(vcpu.get_lapic().regs[_REQUESTS + 16 * word + bit // 8] >> bit % 8 & 1)


def test_a_message_waits_while_its_vector_is_masked(
    vcpu_and_vectors: tuple[Vcpu, MessageVectors], eventually: Eventually
) -> None:
    vcpu, vectors = vcpu_and_vectors
    eventfd = vectors.eventfd(1)
    os.eventfd_write(eventfd, 1)
    vectors.set_route(1, _LAPIC, 0x41, False)
    eventually(lambda: _requested(vcpu, 0x41))
    vectors.set_route(1, _LAPIC, 0x42, False)
    os.eventfd_write(eventfd, 1)
    eventually(lambda: _requested(vcpu, 0x42))
    vectors.set_route(1, _LAPIC, 0x43, True)
    os.eventfd_write(eventfd, 1)
    assert select.select([eventfd], [], [], 0)[0]
    assert not _requested(vcpu, 0x43)
    vectors.set_route(1, _LAPIC, 0x44, False)
    eventually(lambda: _requested(vcpu, 0x44))
    assert not _requested(vcpu, 0x43)


def test_what_leads_nowhere_keeps_what_is_written(
    vcpu_and_vectors: tuple[Vcpu, MessageVectors],
) -> None:
    _, vectors = vcpu_and_vectors
    os.eventfd_write(vectors.eventfd(2), 1)
    assert os.eventfd_read(vectors.eventfd(2)) == 1
