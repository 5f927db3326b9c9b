"""Loading kernels: ours, and files that only claim to be kernels."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.guests.images import bzimage, elf, pvh_note

from cerne.arch.x86.kernel import Protocol, load_initrd, load_kernel
from cerne.errors import ImageError
from cerne.kvm.memory import GuestAddress, GuestMemory
from cerne.units import MIB

_HOSTILE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory.anonymous([(GuestAddress(0), 16 * MIB)]) as made:
        yield made


def _file(content: bytes) -> int:
    descriptor = os.memfd_create("kernel")
    os.write(descriptor, content)
    return descriptor


def test_an_elf_kernel_lies_where_it_says(memory: GuestMemory) -> None:
    kernel = load_kernel(memory, _file(elf([(MIB, 8192, b"\x90" * 100)], MIB + 16)))
    assert (kernel.protocol, kernel.entry, kernel.end) == (Protocol.LINUX64, MIB + 16, MIB + 8192)
    assert memory.read(MIB, 101) == b"\x90" * 100 + b"\0"


def test_a_kernel_that_has_only_the_pvh_entry_is_entered_there(memory: GuestMemory) -> None:
    kernel = load_kernel(memory, _file(elf([(MIB, 4096, b"\xf4")], 0, pvh_note(MIB + 64))))
    assert (kernel.protocol, kernel.entry) == (Protocol.PVH, MIB + 64)


def test_a_bzimage_lies_where_it_says_and_is_entered_in_long_mode(memory: GuestMemory) -> None:
    image = bzimage(b"\xf4" * 5000, address=2 * MIB, needed=MIB)
    kernel = load_kernel(memory, _file(image))
    assert (kernel.protocol, kernel.entry) == (Protocol.LINUX64, 2 * MIB + 0x200)
    assert kernel.end == 3 * MIB
    assert memory.read(2 * MIB, 5001) == b"\xf4" * 5000 + b"\0"
    assert kernel.setup_header == image[0x1F1 : 0x1F1 + len(kernel.setup_header)]


@pytest.mark.parametrize("version", [0x20A, 0x20F])
def test_a_bzimage_without_a_64_bit_entry_is_entered_at_its_start(
    memory: GuestMemory, version: int
) -> None:
    kernel = load_kernel(memory, _file(bzimage(b"\xf4", long_mode=False, version=version)))
    assert (kernel.protocol, kernel.entry) == (Protocol.LINUX32, MIB)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        bzimage(b"\xf4", version=0x207),
        bzimage(b"\xf4", address=MIB + 16),
        bzimage(bytes(5000), needed=4096),
        bzimage(b"\xf4", needed=64 * MIB),
        bzimage(b""),
        b"\x7fELF",
        b"not a kernel" * 100,
        bytes(0x202) + b"HdrS",
        elf([], MIB),
        elf([(0, 4096, b"x")], 0),
        elf([(MIB, 1 << 40, b"x")], MIB),
        elf([(MIB, 64 * MIB, b"x")], MIB),
        elf([((1 << 64) - 4096, 8192, b"x")], MIB),
        elf([(MIB, 4096, b"x")], 64 * MIB),
        elf([(MIB, 10, b"x" * 100)], MIB),
        elf([(MIB, 4096, b"x")], MIB)[:100],
    ],
)
def test_what_is_no_kernel_is_refused(memory: GuestMemory, content: bytes) -> None:
    with pytest.raises(ImageError):
        load_kernel(memory, _file(content))


@_HOSTILE
@given(st.binary(max_size=600), st.sampled_from([b"\x7fELF\x02\x01\x01", b"", bytes(0x202)]))
def test_any_bytes_are_loaded_or_refused(memory: GuestMemory, rest: bytes, start: bytes) -> None:
    descriptor = _file(start + (b"HdrS" if len(start) > 100 else b"") + rest)
    try:
        load_kernel(memory, descriptor)
    except ImageError:
        pass
    finally:
        os.close(descriptor)


@_HOSTILE
@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), max_size=8))
def test_a_kernel_with_changed_bytes_is_loaded_or_refused(
    memory: GuestMemory, changes: list[tuple[int, int]]
) -> None:
    note = pvh_note(MIB)
    content = bytearray(elf([(MIB, 8192, b"\x90" * 64), (2 * MIB, 64, b"x" * 64)], MIB, note))
    for position, value in changes:
        content[position % len(content)] = value
    descriptor = _file(bytes(content))
    try:
        load_kernel(memory, descriptor)
    except ImageError:
        pass
    finally:
        os.close(descriptor)


def test_an_initrd_lies_above_the_kernel_or_is_refused(memory: GuestMemory) -> None:
    kernel = load_kernel(memory, _file(elf([(MIB, 4096, b"\xf4")], MIB)))
    initrd = load_initrd(memory, _file(b"abc" * 1000), kernel)
    assert memory.read(initrd.address, 3000) == b"abc" * 1000
    assert initrd.address >= kernel.end
    with pytest.raises(ImageError, match="does not fit"):
        load_initrd(memory, _file(bytes(16 * MIB)), kernel)
