"""Loading kernels: ours, and files that only claim to be kernels."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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


def _elf(segments: list[tuple[int, int, bytes]], entry: int, note: bytes = b"") -> bytes:
    """An ELF file of (physical address, size in memory, content) segments, and a note."""
    headers, body = b"", b""
    count = len(segments) + bool(note)
    start = 64 + 56 * count
    for address, size, content in segments:
        offset = start + len(body)
        headers += struct.pack("<IIQQQQQQ", 1, 7, offset, 0, address, len(content), size, 4096)
        body += content
    if note:
        offset = start + len(body)
        headers += struct.pack("<IIQQQQQQ", 4, 4, offset, 0, 0, len(note), len(note), 4)
        body += note
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    head = ident + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, entry, 64, 0, 0, 64, 56, count, 0, 0, 0)
    return head + headers + body


def test_an_elf_kernel_lies_where_it_says(memory: GuestMemory) -> None:
    kernel = load_kernel(memory, _file(_elf([(MIB, 8192, b"\x90" * 100)], MIB + 16)))
    assert (kernel.protocol, kernel.entry, kernel.end) == (Protocol.LINUX64, MIB + 16, MIB + 8192)
    assert memory.read(MIB, 101) == b"\x90" * 100 + b"\0"


def test_a_kernel_that_has_only_the_pvh_entry_is_entered_there(memory: GuestMemory) -> None:
    note = struct.pack("<III4sI", 4, 4, 18, b"Xen\0", MIB + 64)
    kernel = load_kernel(memory, _file(_elf([(MIB, 4096, b"\xf4")], 0, note)))
    assert (kernel.protocol, kernel.entry) == (Protocol.PVH, MIB + 64)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x7fELF",
        b"not a kernel" * 100,
        bytes(0x202) + b"HdrS",
        _elf([], MIB),
        _elf([(0, 4096, b"x")], 0),
        _elf([(MIB, 1 << 40, b"x")], MIB),
        _elf([(MIB, 64 * MIB, b"x")], MIB),
        _elf([((1 << 64) - 4096, 8192, b"x")], MIB),
        _elf([(MIB, 4096, b"x")], 64 * MIB),
        _elf([(MIB, 10, b"x" * 100)], MIB),
        _elf([(MIB, 4096, b"x")], MIB)[:100],
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
    note = struct.pack("<III4sI", 4, 4, 18, b"Xen\0", MIB)
    content = bytearray(_elf([(MIB, 8192, b"\x90" * 64), (2 * MIB, 64, b"x" * 64)], MIB, note))
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
    kernel = load_kernel(memory, _file(_elf([(MIB, 4096, b"\xf4")], MIB)))
    initrd = load_initrd(memory, _file(b"abc" * 1000), kernel)
    assert memory.read(initrd.address, 3000) == b"abc" * 1000
    assert initrd.address >= kernel.end
    with pytest.raises(ImageError, match="does not fit"):
        load_initrd(memory, _file(bytes(16 * MIB)), kernel)
