"""The file that a snapshot is carried in: a tar (POSIX.1-1988, GNU sizes) with its index first.

    index.json      what is in the file: each member's name, size, extents and SHA-256
    index.sha256    the index's own SHA-256
    memory/…        what the engine saved
    disk.qcow2      what the machine's disk differs in from its image's
    image/…         the image: kernel, initrd, disk

Holes of sparse files are left out: a member holds its extents one after the other, and the index
says where they go. Nothing of it is believed: names, sizes and extents are checked before a byte
is written, and each member's digest as it is read. The index has at most `_LARGEST_INDEX` bytes
and `_MOST_MARKS` commas and brackets, so that it takes less than 200 MB to read. The tar's headers
are read one by one here: Python's tarfile reads extensions as long as they announce themselves.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cerne.errors import DamagedError, InputError
from cerne.manager.snapshots.manifest import Manifest, what_is_wrong
from cerne.units import counted

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_INDEX, _DIGEST = "index.json", "index.sha256"
_LARGEST_INDEX = 8 << 20
_MOST_MARKS = 200_000
"""Of commas and opening brackets, which stand before each value. A value takes up to 700 bytes."""
_MOST_EXTENTS = 1 << 14
"""Of one member, as written here: neighbours are joined, their hole included, until it has fewer.

With three marks an extent, four members that have so many have room in the index."""
_LARGEST_FILE = 1 << 50
_LARGEST_PARTS = {"image/kernel": 256 << 20, "image/initrd": 2 << 30}
"""Bytes of what is read whole, holes and all. Linux is given no initrd beyond 2 GiB."""
_MOST_MEMBERS = 64
_LONGEST_COMMAND_LINE = 2047
"""Linux on x86 takes no more (COMMAND_LINE_SIZE)."""
_CHUNK = 1 << 20
_NAME = r"^(?:memory/[A-Za-z0-9][A-Za-z0-9._-]{0,63}|disk\.qcow2|image/(?:kernel|initrd|disk))$"
_SHA256 = r"^[0-9a-f]{64}$"

Report = Callable[[int, int], None]
"""Is told how many bytes of how many are done."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Member(_Part):
    """One file: its extents (offset and length, in bytes) are what the archive holds of it."""

    name: str = Field(pattern=_NAME)
    size: int = Field(ge=0, le=_LARGEST_FILE)
    extents: tuple[tuple[int, int], ...] = Field(fail_fast=True)
    sha256: str = Field(pattern=_SHA256)

    @property
    def held(self) -> int:
        """Bytes that the archive holds of it."""
        return sum(length for _, length in self.extents)

    @model_validator(mode="after")
    def _extents_are_in_order(self) -> Self:
        end = 0
        for offset, length in self.extents:
            if offset < end or length <= 0 or offset + length > self.size:
                raise ValueError("its extents overlap, or are outside of it")
            end = offset + length
        return self

    @model_validator(mode="after")
    def _size_is_plausible(self) -> Self:
        largest = _LARGEST_PARTS.get(self.name, _LARGEST_FILE)
        if self.size > largest:
            raise ValueError(f"it has {counted(self.size, 'byte')}; the most are {largest}")
        return self


class ImageParts(_Part):
    """What an image is made of, beside its files."""

    command_line: str = Field(pattern=r"^[ -~]*$", max_length=_LONGEST_COMMAND_LINE)
    disk_format: str = Field(pattern="^(?:raw|qcow2)$")
    disk_size: int = Field(ge=0, le=_LARGEST_FILE)
    agent: bool
    least_memory: int = Field(default=0, ge=0, le=_LARGEST_FILE)


class Index(_Part):
    """What is in the file."""

    format: Literal["cerne snapshot"] = "cerne snapshot"
    version: Literal[1] = 1
    name: str = Field(max_length=255)
    manifest: Manifest
    image: ImageParts
    members: tuple[Member, ...] = Field(max_length=_MOST_MEMBERS, fail_fast=True)

    @property
    def held(self) -> int:
        """Bytes of all members."""
        return sum(member.held for member in self.members)

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [member.name for member in self.members]
        if len(set(names)) < len(names):
            raise ValueError("two members have the same name")
        return self


def member_of(name: str, path: Path) -> Member:
    """What the index says of a file."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        extents = _joined(tuple(_extents(file.fileno(), size)))
        digest = hashlib.sha256()
        for chunk in _read(file, extents):
            digest.update(chunk)
    return Member(name=name, size=size, extents=extents, sha256=digest.hexdigest())


def write(target: BinaryIO, index: Index, files: Mapping[str, Path], report: Report) -> None:
    """Write a whole archive; `files` are the members', by their names."""
    head = index.model_dump_json().encode()
    done = 0
    with tarfile.open(fileobj=target, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in ((_INDEX, head), (_DIGEST, hashlib.sha256(head).hexdigest().encode())):
            tar.addfile(_info(name, len(content)), io.BytesIO(content))
        for member in index.members:
            with files[member.name].open("rb") as file:
                source = io.BufferedReader(_Joined(_read(file, member.extents)), _CHUNK)
                tar.addfile(_info(member.name, member.held), source)
            done += member.held
            report(done, index.held)


class Reader:
    """An archive that is open for reading; its index has been read and checked."""

    def __init__(self, source: BinaryIO, origin: str) -> None:
        """Read the index.

        Raises:
            DamagedError: it is not an archive, is damaged, or has another version.
        """
        self._origin = origin
        self._source = source
        self._padding = 0
        head = self._small(_INDEX, _LARGEST_INDEX)
        digest = self._small(_DIGEST, 64)
        if hashlib.sha256(head).hexdigest().encode() != digest:
            raise self._damaged("its index was altered")
        if head.count(b",") + head.count(b"[") + head.count(b"{") > _MOST_MARKS:
            raise self._damaged("its index has too many values")
        try:
            self.index = Index.model_validate_json(head)
        except (ValidationError, InputError) as error:
            raise self._damaged(what_is_wrong(error)) from error

    def extract(self, place: Callable[[str], Path], report: Report) -> None:
        """Write each member to where `place` says, checked.

        Raises:
            DamagedError: a member is missing, cut off or altered.
        """
        done = 0
        for member in self.index.members:
            with place(member.name).open("xb") as target:
                self._extract(member, target)
                target.flush()
                os.fsync(target.fileno())
            done += member.held
            report(done, self.index.held)

    def _extract(self, member: Member, target: BinaryIO) -> None:
        self._begin(member.name, member.held)
        digest = hashlib.sha256()
        for offset, length in member.extents:
            target.seek(offset)
            for start in range(0, length, _CHUNK):
                chunk = self._read(member.name, min(_CHUNK, length - start))
                digest.update(chunk)
                target.write(chunk)
        target.truncate(member.size)
        if digest.hexdigest() != member.sha256:
            raise self._damaged(f"{member.name} was altered")

    def _small(self, name: str, limit: int) -> bytes:
        size = self._begin(name, None)
        if size > limit:
            raise self._damaged(f"{name} has {counted(size, 'byte')}; the most are {limit}")
        return self._read(name, size)

    def _begin(self, name: str, size: int | None) -> int:
        """Come to the next member, which is to have this name and size; its size."""
        self._read("the padding", self._padding)
        header = self._read(name, tarfile.BLOCKSIZE)
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise self._damaged(f"it has no {name} at its place") from error
        if info.name != name or info.type != tarfile.REGTYPE or info.size < 0:
            raise self._damaged(f"{name} is not where it should be")
        if size is not None and info.size != size:
            raise self._damaged(f"{name} has {counted(info.size, 'byte')} and not {size}")
        self._padding = -info.size % tarfile.BLOCKSIZE
        return info.size

    def _read(self, name: str, size: int) -> bytes:
        data = self._source.read(size)
        if len(data) != size:
            raise self._damaged(f"{name} is truncated")
        return data

    def _damaged(self, why: str) -> DamagedError:
        return DamagedError(
            f"{self._origin} is not usable: {why}",
            hint="fetch it again, or export the snapshot again",
        )


class _Joined(io.RawIOBase):
    """Chunks, read as one file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        super().__init__()
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        target = memoryview(buffer).cast("B")
        if not self._rest:
            self._rest = memoryview(next(self._chunks, b""))
        length = min(len(target), len(self._rest))
        target[:length] = self._rest[:length]
        self._rest = self._rest[length:]
        return length


def _info(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o600
    return info


def _extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Where a file has data (lseek(2), SEEK_DATA)."""
    end = 0
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, end - start


def _joined(extents: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    """Extents of which those with the smallest holes between them are one, where they are many."""
    smallest = 1 << 16
    while len(extents) > _MOST_EXTENTS:
        found: list[tuple[int, int]] = []
        for offset, length in extents:
            start, known = found[-1] if found else (0, 0)
            if found and offset - (start + known) < smallest:
                found[-1] = (start, offset + length - start)
            else:
                found.append((offset, length))
        extents, smallest = tuple(found), 2 * smallest
    return extents


def _read(file: BinaryIO, extents: tuple[tuple[int, int], ...]) -> Iterator[bytes]:
    for offset, length in extents:
        file.seek(offset)
        for start in range(0, length, _CHUNK):
            chunk = file.read(min(_CHUNK, length - start))
            if not chunk:
                raise EOFError("it was truncated meanwhile")
            yield chunk
