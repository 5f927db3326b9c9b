"""A saved machine in two files: its state, with a format and a checksum, and its sparse memory.

The state is a header (magic, format, architecture, length, SHA-256) and a tree of sections in
JSON. The memory file has a machine's ranges one after the other, with holes for pages of zeros, so
that it can be mapped directly: a restored machine shares its pages until it writes to them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
from collections.abc import Iterator

from cerne.arch.x86 import layout
from cerne.devices.state import PlainState, SavedState
from cerne.errors import DamagedError, StorageError
from cerne.kvm.memory import BLOCK_SIZE, PAGE_SIZE, GuestMemory
from cerne.units import counted
from cerne.vmm.memory_file import PIECE, is_zero, numbered, pieces_with_data
from cerne.vmm.upgrade import FORMAT, require_known, upgraded

_MAGIC = b"CERNEVM\0"
_X86_64 = 62
"""The number of the architecture in ELF."""
_HEADER = struct.Struct("<8sIIQ32s")
_LARGEST_STATE = 8 << 20
"""The most bytes of a state, which normally has 100 KB; reading a larger one would waste memory."""
_MOST_MEMORY = 1 << 52
_NO_PAGE = bytes(PAGE_SIZE)


def write_state(descriptor: int, state: PlainState) -> None:
    """Write a state to an empty file.

    Raises:
        StorageError: writing failed.
    """
    content = json.dumps(state).encode()
    digest = hashlib.sha256(content).digest()
    header = _HEADER.pack(_MAGIC, FORMAT, _X86_64, len(content), digest)
    with _writing("the state of the machine"):
        _write_at(descriptor, header + content, 0)
        os.fsync(descriptor)


def read_state(descriptor: int) -> PlainState:
    """Read a state that `write_state` wrote, of this Cerne or an older one.

    Raises:
        DamagedError: it is truncated, altered, or of an unknown format or architecture.
    """
    header = os.pread(descriptor, _HEADER.size, 0)
    if len(header) < _HEADER.size or not header.startswith(_MAGIC):
        raise DamagedError("the file is not a saved machine")
    _, number, architecture, length, digest = _HEADER.unpack(header)
    require_known(number)
    if architecture != _X86_64:
        raise DamagedError(f"the machine was saved on architecture {architecture}, not x86-64")
    content = os.pread(descriptor, min(length, _LARGEST_STATE) + 1, _HEADER.size)
    if len(content) != length or hashlib.sha256(content).digest() != digest:
        raise DamagedError("the saved machine's state is truncated or was altered")
    try:
        state = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"the saved machine's state is not readable: {error}") from error
    if not isinstance(state, dict):
        raise DamagedError("the saved machine's state is not a tree")
    return upgraded(state, number)


def write_memory(descriptor: int, memory: GuestMemory) -> str:
    """Write memory to an empty file, without its zeros; return the digest of the file.

    Raises:
        StorageError: writing failed.
    """
    digest = hashlib.sha256(numbered(memory.size))
    offset = 0
    with _writing("the memory of the machine"):
        os.ftruncate(descriptor, memory.size)
        for region in memory.regions:
            for start in range(0, region.size, PIECE):
                piece = bytes(region.view[start : start + PIECE])
                if not is_zero(piece):
                    digest.update(numbered(offset + start))
                    digest.update(piece)
                    _write_pages(descriptor, piece, offset + start)
            offset += region.size
        os.fsync(descriptor)
    return digest.hexdigest()


def restored_memory(descriptor: int, state: PlainState) -> GuestMemory:
    """The memory of a saved machine, which shares the file's pages until it writes to them.

    Plugged blocks are copied, because they have room behind the memory.

    Raises:
        DamagedError: the state does not say which memory it had, or the file is too short.
        HostError: the host does not map so much.
    """
    saved = SavedState("a machine", state)
    size = saved.integer("memory", _MOST_MEMORY, PAGE_SIZE)
    headroom = saved.integer("headroom", _MOST_MEMORY)
    blocks = saved.integers("plugged", max(0, headroom // BLOCK_SIZE - 1))
    if headroom % BLOCK_SIZE or size % PAGE_SIZE or blocks != sorted(set(blocks)):
        raise DamagedError("the saved machine has blocks of memory that are not possible")
    if os.fstat(descriptor).st_size != size + len(blocks) * BLOCK_SIZE:
        raise DamagedError("the saved memory has another size than the machine")
    memory = GuestMemory.private_file(layout.memory_ranges(size), descriptor)
    if headroom:
        start, room = layout.room(size, headroom)
        if room != headroom:
            raise DamagedError(
                f"the saved machine has {counted(headroom, 'byte')} of room for memory"
            )
        memory.reserve(start, room)
    for index, block in enumerate(blocks):
        memory.plug(block)
        _read_block(descriptor, size + index * BLOCK_SIZE, memory.block(block).view)
    return memory


def _read_block(descriptor: int, offset: int, view: memoryview) -> None:
    for piece in pieces_with_data(descriptor, offset, offset + len(view)):
        at = piece - offset
        with _reading():
            if os.preadv(descriptor, [view[at : at + PIECE]], piece) != min(PIECE, len(view) - at):
                raise DamagedError("the saved memory is truncated")


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"reading the saved memory failed: {error.strerror}") from error


def _write_pages(descriptor: int, piece: bytes, offset: int) -> None:
    """Write the pages of a piece that are not zero, adjacent pages together."""
    first: int | None = None
    for start in range(0, len(piece), PAGE_SIZE):
        empty = piece.startswith(_NO_PAGE, start)
        if empty and first is not None:
            _write_at(descriptor, piece[first:start], offset + first)
            first = None
        elif not empty and first is None:
            first = start
    if first is not None:
        _write_at(descriptor, piece[first:], offset + first)


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


@contextlib.contextmanager
def _writing(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"writing {what} failed: {error.strerror}", hint="free some space, and try again"
        ) from error
