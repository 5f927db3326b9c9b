"""Copies trees of files into a guest and out of it, as a stream of entries (``docs/agent.md``).

A guest's data is hostile. A name is one component and is checked; every file is made relative to
the descriptor of its directory, and no symbolic link is followed, so that nothing is written
outside of the destination.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Generator, Iterator
from pathlib import Path, PurePosixPath
from shlex import quote

from cerne.errors import ConflictError, GuestError, InputError, NotFoundError, StorageError
from cerne.guest import wire
from cerne.guest.session import Session, error_of
from cerne.guest.wire import MAX_DEPTH, MAX_PAYLOAD, Entry, EntryKind, FrameType
from cerne.units import MIB, TIB, counted, format_size

_NAME_MAX = 255
_OPEN_TO_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# The range of file times on every file system in use: ext4 ends in 2446.
_EARLIEST, _LATEST = -(2**31), 15_000_000_000
_BLOCK = 512
"""Bytes of a block of `st_blocks` (stat(2))."""
_MOST_UNTOLD = 16 * MIB
"""The most bytes of a file that announces the size 0, as those do that the kernel makes."""
_RESERVE = 64 * MIB
_RESERVED_PART = 16
"""A copy leaves the reserve free on this host's file system, or this part of a small one."""
_LOOKED_AFTER = 4 * MIB
"""Bytes after which a copy looks again at what is free."""
_OF_AN_ENTRY = 4096
"""Bytes that a file or a directory takes without its data, about."""
_LARGEST_FILE = 16 * TIB
"""The largest file of ext4, with its holes, which a guest does not send."""


def push(session: Session, local: Path, remote: str) -> None:
    """Copy a file or a directory into the guest; see `GuestAgent.push`."""
    root = _real(local)
    session.send_strings([remote, root.name or "root"])
    session.send(FrameType.PUSH)
    try:
        _send_tree(session, root)
    except OSError as error:
        _give_up(session)
        path = error.filename or local
        raise InputError(
            f"reading {path} failed: {error.strerror}", hint=f"see: ls -ld {quote(str(path))}"
        ) from error
    except _RefusedError as refused:
        session.send(FrameType.END)
        raise refused.error from refused
    session.send(FrameType.END)
    session.expect(FrameType.DONE)


class _RefusedError(Exception):
    """The agent answered before all was sent: it failed."""

    def __init__(self, error: GuestError) -> None:
        super().__init__(str(error))
        self.error = error


def _real(local: Path) -> Path:
    try:
        root = local.resolve(strict=True)
    except FileNotFoundError as error:
        raise NotFoundError(
            f"there is no file {local} on this host", hint=f"see: ls -l {quote(str(local.parent))}"
        ) from error
    except (OSError, RuntimeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is a loop of symbolic links"
        raise InputError(
            f"reading {local} failed: {why}", hint=f"see: ls -ld {quote(str(local))}"
        ) from error
    if not root.is_file() and not root.is_dir():
        raise InputError(
            f"{local} is neither a file nor a directory",
            hint="copy its content as a file: cat it into one first",
        )
    return root


def _give_up(session: Session) -> None:
    session.send(FrameType.END)
    with contextlib.suppress(GuestError):
        session.expect(FrameType.DONE)


def _send_tree(session: Session, root: Path) -> None:
    """Send a tree depth first, without recursion."""
    stack = [iter([root])]
    directories: list[os.stat_result] = []
    while stack:
        path = next(stack[-1], None)
        if path is not None:
            status = path.lstat()
            children = _send_one(session, path, status)
            if children is not None:
                stack.append(children)
                directories.append(status)
            continue
        stack.pop()
        if directories:
            _send_entry(session, EntryKind.LEAVE, b"", directories.pop())


def _send_one(session: Session, path: Path, status: os.stat_result) -> Iterator[Path] | None:
    """Send one entry; a directory's children are returned for the walk."""
    name = os.fsencode(path.name)
    if stat.S_ISDIR(status.st_mode):
        _send_entry(session, EntryKind.DIRECTORY, name, status)
        return iter(sorted(path.iterdir()))
    if stat.S_ISLNK(status.st_mode):
        target = os.fsencode(path.readlink())
        _send_entry(session, EntryKind.SYMLINK, name, status, target)
    elif stat.S_ISREG(status.st_mode):
        _send_file(session, path, name)
    return None


def _send_entry(
    session: Session,
    kind: EntryKind,
    name: bytes,
    status: os.stat_result,
    target: bytes = b"",
    size: int | None = None,
) -> None:
    seconds, nanoseconds = divmod(status.st_mtime_ns, 10**9)
    if size is None:
        size = status.st_size if kind is EntryKind.FILE else 0
    mode = stat.S_IMODE(status.st_mode)
    entry = Entry(kind, mode, seconds, nanoseconds, size, name, target)
    _send(session, FrameType.ENTRY, entry.pack())


def _send_file(session: Session, path: Path, name: bytes) -> None:
    descriptor = os.open(path, _OPEN_TO_READ)
    try:
        send = _send_holes if session.version >= wire.HOLES_VERSION else _send_whole
        send(session, _Source(descriptor, path), name)
    finally:
        os.close(descriptor)


def _send_holes(session: Session, source: _Source, name: bytes) -> None:
    _send_entry(session, EntryKind.FILE, name, source.status)
    for piece in source.pieces():
        if isinstance(piece, int):
            _send(session, FrameType.HOLE, wire.HOLE.pack(piece))
        else:
            _send(session, FrameType.DATA, piece)
    _send(session, FrameType.FILE_END, b"")


def _send_whole(session: Session, source: _Source, name: bytes) -> None:
    """Send to an agent of version 1, which needs a file's size, and knows no holes."""
    ready = None if source.status.st_size else source.read_whole()
    size = source.status.st_size if ready is None else len(ready)
    _send_entry(session, EntryKind.FILE, name, source.status, size=size)
    left = size
    for piece in source.pieces() if ready is None else _cut(ready):
        left -= piece if isinstance(piece, int) else len(piece)
        for data in _zeros(piece) if isinstance(piece, int) else (piece,):
            _send(session, FrameType.DATA, data)
    if left:
        raise source.shortened()


def _cut(data: bytes) -> Iterator[bytes]:
    return (data[at : at + MAX_PAYLOAD] for at in range(0, len(data), MAX_PAYLOAD))


def _zeros(length: int) -> Iterator[bytes]:
    return (bytes(min(MAX_PAYLOAD, length - at)) for at in range(0, length, MAX_PAYLOAD))


class _Source:
    """A file of this host that is copied."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        self._path = path
        self.status = os.fstat(descriptor)

    def pieces(self) -> Iterator[bytes | int]:
        """Its data, and between them the lengths of its holes.

        A growing file is read up to its size at the opening. A file with a size of 0 is read to its
        end, because the kernel makes some files while they are read (``/proc``).

        Raises:
            OSError: reading failed, or the file was shortened.
        """
        size = self.status.st_size
        if self.status.st_blocks * _BLOCK >= size:
            got = yield from self._data(size or sys.maxsize)
            if got < size:
                raise self.shortened()
            return
        offset = 0
        while offset < size:
            start = self._seek(offset, os.SEEK_DATA, offset)
            end = self._seek(start, os.SEEK_HOLE, size) if start < size else size
            if start > offset:
                yield start - offset
            self._go_to(start)
            got = yield from self._data(end - start)
            if got < end - start:
                self._require_more_than(start + got)
                return
            offset = end
        # A shortened file looks like a file that ends in a hole.
        self._require_more_than(size - 1)

    def read_whole(self) -> bytes:
        """The content of a file whose size is unknown.

        Raises:
            OSError: reading failed, or the file is too long to be kept in memory.
        """
        data = bytearray()
        for piece in self._data(_MOST_UNTOLD + 1):
            data += piece
        if len(data) > _MOST_UNTOLD:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(self._path))
        return bytes(data)

    def shortened(self) -> OSError:
        """The error for a file that was shortened while it was read."""
        return OSError(0, "it was shortened while it was read", str(self._path))

    def _data(self, most: int) -> Generator[bytes, None, int]:
        """Read at most so many bytes."""
        got = 0
        while got < most:
            data = os.read(self._descriptor, min(most - got, MAX_PAYLOAD))
            if not data:
                break
            yield data
            got += len(data)
        return got

    def _seek(self, offset: int, whence: int, otherwise: int) -> int:
        """The offset of the next data or hole; `otherwise` if the file system does not know."""
        try:
            return min(os.lseek(self._descriptor, offset, whence), self.status.st_size)
        except OSError as error:
            return self.status.st_size if error.errno == errno.ENXIO else otherwise

    def _go_to(self, offset: int) -> None:
        try:
            os.lseek(self._descriptor, offset, os.SEEK_SET)
        except OSError as error:
            # The file system knows no holes, and the offset is unchanged.
            if error.errno != errno.ESPIPE:
                raise

    def _require_more_than(self, size: int) -> None:
        """Refuse a shortened file; the size of a file of the kernel exceeds its content."""
        if os.fstat(self._descriptor).st_size <= size:
            raise self.shortened()


def _send(session: Session, kind: FrameType, payload: bytes) -> None:
    # The agent answers before the end only to report a failure.
    if session.has_answer():
        frame = session.receive()
        if frame.type is FrameType.ERROR:
            raise _RefusedError(error_of(frame.payload))
        raise wire.nonsense(f"{frame.type.name} in the middle of a copy")
    session.send(kind, payload)


def pull(session: Session, remote: str, local: Path) -> None:
    """Copy a file or a directory out of the guest; see `GuestAgent.pull`."""
    target = local / _base_name(remote) if local.is_dir() else local
    try:
        parent = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise NotFoundError(
            f"writing into {target.parent} failed: {error.strerror}",
            hint=f"make the directory first: mkdir -p {quote(str(target.parent))}",
        ) from error
    receiver = _Receiver(parent, target.name, session.version >= wire.HOLES_VERSION)
    try:
        session.send_strings([remote])
        session.send(FrameType.PULL)
        _receive_tree(session, receiver)
        receiver.finish()
    except OSError as error:
        raise StorageError(
            f"writing {target} failed: {error.strerror}",
            hint=f"free some space: df -h {quote(str(target.parent))}"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else f"see: ls -ld {quote(str(target.parent))}",
        ) from error
    finally:
        receiver.abandon()
        os.close(parent)


def _base_name(remote: str) -> str:
    name = PurePosixPath(remote).name
    if name in ("", ".."):
        raise InputError(
            f"{remote!r} has no last component to name the copy",
            hint="give the target with its name, such as ./copy",
        )
    return name


def _receive_tree(session: Session, receiver: _Receiver) -> None:
    while True:
        frame = session.receive()
        match frame.type:
            case FrameType.ENTRY:
                receiver.entry(Entry.unpack(frame.payload))
            case FrameType.DATA:
                receiver.data(frame.payload)
            case FrameType.HOLE:
                receiver.hole(frame.payload)
            case FrameType.FILE_END:
                receiver.file_end()
            case FrameType.DONE:
                return
            case FrameType.ERROR:
                raise error_of(frame.payload)
            case _:
                raise wire.nonsense(f"{frame.type.name} in the middle of a copy")


class _Receiver:
    """Writes one tree from its entries, with the name `name` in the directory `parent`.

    A new directory has a temporary name until it is complete. With `holes` a frame ends each file;
    without it a file ends at its announced size.
    """

    def __init__(self, parent: int, name: str, holes: bool) -> None:
        self._holes = holes
        self._parent = parent
        self._name = name
        self._directories: list[int] = []
        self._root_seen = False
        self._root_temporary: str | None = None
        self._file: int | None = None
        self._file_entry = Entry(EntryKind.FILE)
        self._file_name = ""
        self._temporary = ""
        self._left = 0
        self._uncounted = 0

    def entry(self, entry: Entry) -> None:
        """Handle the next entry."""
        self._count(_OF_AN_ENTRY)
        if self._file is not None:
            raise wire.nonsense("an entry in the middle of a file")
        if entry.kind is EntryKind.LEAVE:
            self._leave(entry)
            return
        name = self._next_name(entry)
        match entry.kind:
            case EntryKind.DIRECTORY:
                self._enter(name)
            case EntryKind.FILE:
                self._begin_file(name, entry)
            case EntryKind.SYMLINK:
                self._symlink(name, entry)

    def data(self, data: bytes) -> None:
        """Write the next bytes of the current file."""
        file = self._take(len(data))
        self._count(len(data))
        view = memoryview(data)
        while view:
            view = view[os.write(file, view) :]
        if not self._left and not self._holes:
            self._finish_file(file)

    def hole(self, payload: bytes) -> None:
        """Leave a hole in the current file."""
        if not self._file_entry.size or len(payload) != wire.HOLE.size or not self._holes:
            raise wire.nonsense("a hole of a wrong length")
        (length,) = wire.HOLE.unpack(payload)
        os.lseek(self._take(length), length, os.SEEK_CUR)

    def file_end(self) -> None:
        """Finish the current file."""
        if self._file is None or not self._holes:
            raise wire.nonsense("the end of a file that never began")
        # The file may end in a hole.
        os.ftruncate(self._file, os.lseek(self._file, 0, os.SEEK_CUR))
        self._finish_file(self._file)

    def finish(self) -> None:
        """Rename a new directory into its place, after the last entry.

        Raises:
            GuestError: entries are missing.
        """
        if not self._root_seen or self._directories or self._file is not None:
            raise wire.nonsense("only a part of the copy")
        if self._root_temporary is not None:
            self._rename(self._parent, self._root_temporary, self._name)
            self._root_temporary = None

    def abandon(self) -> None:
        """Remove all that is not finished."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
            with contextlib.suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._place)
        while self._directories:
            os.close(self._directories.pop())
        if self._root_temporary is not None:
            shutil.rmtree(self._root_temporary, ignore_errors=True, dir_fd=self._parent)

    def _count(self, length: int) -> None:
        """Count bytes for this host's disk, which a guest must not fill.

        Raises:
            StorageError: the reserve of its file system is reached.
        """
        self._uncounted += length
        if self._uncounted < _LOOKED_AFTER:
            return
        self._uncounted = 0
        there = os.fstatvfs(self._parent)
        reserve = min(_RESERVE, there.f_blocks * there.f_frsize // _RESERVED_PART)
        if there.f_bavail * there.f_frsize < reserve:
            raise StorageError(
                f"the copy of {self._name} was ended, because it fills this host's disk: less"
                f" than {format_size(reserve)} are free",
                hint="free some space, or copy less: df -h .",
            )

    def _take(self, length: int) -> int:
        """The current file, if so many bytes more belong to it."""
        if self._file is None or length > self._left:
            raise wire.nonsense("more of a file than it announced")
        self._left -= length
        return self._file

    @property
    def _place(self) -> int:
        return self._directories[-1] if self._directories else self._parent

    def _next_name(self, entry: Entry) -> str:
        """A checked name; the root has our name, not the guest's."""
        if not self._root_seen:
            self._root_seen = True
            return self._name
        name = entry.name
        if not self._directories or len(self._directories) >= MAX_DEPTH:
            raise wire.nonsense("a file that belongs to no directory of the copy")
        if name in (b"", b".", b"..") or b"/" in name or b"\0" in name or len(name) > _NAME_MAX:
            raise wire.nonsense(f"a file called {wire.readable(name)!r}")
        return os.fsdecode(name)

    def _enter(self, name: str) -> None:
        place = self._place
        if not self._directories and not _exists(place, name):
            name = self._root_temporary = _temporary_name()
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=place)
        try:
            self._directories.append(os.open(name, _OPEN_DIRECTORY, dir_fd=place))
        except NotADirectoryError as error:
            raise ConflictError(f"{name} exists and is not a directory") from error

    def _leave(self, entry: Entry) -> None:
        if not self._directories:
            raise wire.nonsense("the end of a directory that never began")
        descriptor = self._directories.pop()
        try:
            os.fchmod(descriptor, entry.mode & 0o777)
            os.utime(descriptor, ns=_times(entry))
        finally:
            os.close(descriptor)

    def _begin_file(self, name: str, entry: Entry) -> None:
        if self._holes and entry.size > _LARGEST_FILE:
            raise wire.nonsense(
                f"a file of {counted(entry.size, 'byte')}; the most are {_LARGEST_FILE}"
            )
        self._file_name, self._file_entry, self._left = name, entry, entry.size
        self._temporary = _temporary_name()
        self._file = os.open(self._temporary, _OPEN_NEW, 0o600, dir_fd=self._place)
        if self._holes:
            # The size 0 may belong to a file that the kernel makes while it is read.
            self._left = entry.size or _MOST_UNTOLD
        elif not self._left:
            self._finish_file(self._file)

    def _finish_file(self, descriptor: int) -> None:
        # The owner changes, so setuid and setgid would have another meaning here.
        os.fchmod(descriptor, self._file_entry.mode & 0o777)
        os.utime(descriptor, ns=_times(self._file_entry))
        self._rename(self._place, self._temporary, self._file_name)
        self._file = None
        os.close(descriptor)

    def _symlink(self, name: str, entry: Entry) -> None:
        if not self._directories:
            # An agent follows the path that it is given; a link here would be followed next time.
            raise wire.nonsense("a symbolic link in place of the copy")
        if not entry.target or b"\0" in entry.target:
            raise wire.nonsense("a symbolic link to nowhere")
        temporary = _temporary_name()
        os.symlink(os.fsdecode(entry.target), temporary, dir_fd=self._place)
        try:
            os.utime(temporary, ns=_times(entry), dir_fd=self._place, follow_symlinks=False)
            self._rename(self._place, temporary, name)
        except OSError:
            os.unlink(temporary, dir_fd=self._place)
            raise

    @staticmethod
    def _rename(place: int, temporary: str, name: str) -> None:
        os.rename(temporary, name, src_dir_fd=place, dst_dir_fd=place)


def _temporary_name() -> str:
    return f".cerne-{secrets.token_hex(8)}"


def _exists(place: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=place, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _times(entry: Entry) -> tuple[int, int]:
    seconds = min(max(entry.seconds, _EARLIEST), _LATEST)
    moment = seconds * 10**9 + entry.nanoseconds
    return moment, moment
