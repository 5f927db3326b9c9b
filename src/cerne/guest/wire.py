"""Frames of the guest agent's protocol, versions 1 to 3 (``docs/agent.md``).

A frame is a type, a length and a payload, little-endian. The guest's data is hostile: every length
is checked before it is used.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass
from enum import IntEnum

from cerne.errors import GuestError
from cerne.units import counted

VERSION = 3
"""The newest version; an agent answers with it or an older one, which both sides then speak."""
OLDEST_VERSION = 1
HOLES_VERSION = 2
"""The first version with holes in files and a frame that ends a file."""
IDENTITY_VERSION = 3
"""The first version whose renewals say whose guest it is, and that grows the root file system."""
MAGIC = b"cerne\0ag"
NONCE_SIZE = 16
HEADER = struct.Struct("<B3xI")
HELLO = struct.Struct(f"<{len(MAGIC)}sI{NONCE_SIZE}s")
EXEC = struct.Struct("<B1xHHHI")
ENTRY = struct.Struct("<B3xIqIIQ")
EXITED = struct.Struct("<II")
ERROR = struct.Struct("<i")
COUNT = struct.Struct("<I")
HOLE = struct.Struct("<Q")
SIZE = struct.Struct("<HH")
TIME = struct.Struct("<qI")
RENEWED_ENTROPY = 64
RENEWAL = struct.Struct(f"<qI?x6s{RENEWED_ENTROPY}s")

MAX_PAYLOAD = 32 * 1024
MAX_ARGUMENTS = 1024 * 1024
"""The most bytes of all strings of one request, with their final zeros."""
MAX_STRINGS = 65536
WINDOW = 256 * 1024
"""The initial credit of each side of a process's streams, in bytes."""
MAX_DEPTH = 256
"""The deepest nesting of directories in a copied tree."""


class FrameType(IntEnum):
    """Types of frames; the host sends those below 65, the guest the others."""

    HELLO = 1
    ARGUMENTS = 2
    EXEC = 3
    STDIN = 4
    STDIN_END = 5
    RESIZE = 6
    SIGNAL = 7
    CREDIT = 8
    """Both ways."""
    PUSH = 9
    ENTRY = 10
    """Both ways."""
    DATA = 11
    """Both ways."""
    END = 12
    PULL = 13
    INFO = 14
    SHUTDOWN = 15
    SET_TIME = 16
    ENTROPY = 17
    FREEZE = 18
    THAW = 19
    RENEW = 20
    HOLE = 21
    """Both ways."""
    FILE_END = 22
    """Both ways."""
    GROW = 23
    WELCOME = 65
    STARTED = 66
    STDOUT = 67
    STDERR = 68
    EXITED = 69
    ERROR = 70
    DONE = 71
    RESTARTED = 72


class EntryKind(IntEnum):
    """Kinds of entries of a copied tree."""

    FILE = 1
    DIRECTORY = 2
    LEAVE = 3
    SYMLINK = 4


_FRAME_TYPES = frozenset(map(int, FrameType))
_ENTRY_KINDS = frozenset(map(int, EntryKind))


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame from the guest."""

    type: FrameType
    payload: bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """One step of a copied tree; a name is one component, never a path."""

    kind: EntryKind
    mode: int = 0
    seconds: int = 0
    nanoseconds: int = 0
    size: int = 0
    name: bytes = b""
    target: bytes = b""
    """The target of a symbolic link."""

    def pack(self) -> bytes:
        """The payload of its frame."""
        fixed = ENTRY.pack(
            self.kind, self.mode, self.seconds, self.nanoseconds, len(self.name), self.size
        )
        return fixed + self.name + self.target

    @classmethod
    def unpack(cls, payload: bytes) -> Entry:
        """Decode an entry from a payload.

        Raises:
            GuestError: it is not valid.
        """
        if len(payload) < ENTRY.size:
            raise nonsense("an entry that is too short")
        kind, mode, seconds, nanoseconds, name_length, size = ENTRY.unpack_from(payload)
        rest = payload[ENTRY.size :]
        if kind not in _ENTRY_KINDS or name_length > len(rest) or nanoseconds >= 10**9:
            raise nonsense("an entry that is not valid")
        return cls(
            EntryKind(kind),
            mode,
            seconds,
            nanoseconds,
            size,
            rest[:name_length],
            rest[name_length:],
        )


class Decoder:
    """Cuts the stream of bytes from the guest into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._frames: deque[Frame] = deque()

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the stream.

        Raises:
            GuestError: they are not frames.
        """
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= HEADER.size:
            kind, length = HEADER.unpack_from(self._buffer, start)
            if length > MAX_PAYLOAD or kind not in _FRAME_TYPES:
                raise nonsense(f"a frame of type {kind} with {counted(length, 'byte')}")
            end = start + HEADER.size + length
            if len(self._buffer) < end:
                break
            payload = bytes(self._buffer[start + HEADER.size : end])
            self._frames.append(Frame(FrameType(kind), payload))
            start = end
        del self._buffer[:start]

    def next(self) -> Frame | None:
        """The next whole frame, or None."""
        return self._frames.popleft() if self._frames else None


def encode(kind: FrameType, payload: bytes = b"") -> bytes:
    """A frame's bytes."""
    return HEADER.pack(kind, len(payload)) + payload


def nonsense(what: str) -> GuestError:
    """The error for a guest that breaks the protocol."""
    return GuestError(
        f"the guest's agent sent {what}",
        hint="its agent may be damaged; restart the machine, or build its image again",
    )


def readable(data: bytes, most: int = 1024) -> str:
    """A guest's text, made safe for a terminal."""
    text = data[:most].decode(errors="replace")
    return "".join(letter if letter.isprintable() else "?" for letter in text)
