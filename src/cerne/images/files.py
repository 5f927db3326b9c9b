"""Files kept by the digest of their content: written once, shared by all images, never changed.

files/SHA256            content, read-only
manifests/SHA256.json   an image's parts; the file's digest is its name
names/NAME              the manifest that a name means, replaced as a whole
work/                   images in the making; leftovers of killed builds are removed
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from cerne.errors import CerneError, ChecksumError, StorageError
from cerne.host.own_ids import as_root, has_own_ids
from cerne.images.progress import Progress, silent

_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def sha256_of(path: Path) -> str:
    """The SHA-256 digest of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a reader finds either all of it or the former content."""
    descriptor, name = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)  # noqa: PTH105
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


@contextlib.contextmanager
def new_file(target: Path) -> Iterator[BinaryIO]:
    """A file that appears at `target` when it is complete; a killed command leaves nothing.

    Raises:
        FileExistsError: there is a file at `target` already.
    """
    directory = target.absolute().parent
    try:
        descriptor = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
            raise
        with _named_new_file(target) as file:
            yield file
        return
    with os.fdopen(descriptor, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
        # linkat(2) gives a file without a name its name; without a directory's descriptor os.link
        # calls link(2).
        os.link(f"/proc/self/fd/{file.fileno()}", target, src_dir_fd=file.fileno())
    sync_directory(directory)


@contextlib.contextmanager
def _named_new_file(target: Path) -> Iterator[BinaryIO]:
    """As `new_file`, on a file system that has no files without a name."""
    directory = target.absolute().parent
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}-", dir=directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.link(name, target)
    finally:
        Path(name).unlink()
    sync_directory(directory)


def keep(path: Path, digest: str, files: Path) -> None:
    """Move a file of this digest into the store, on the same file system."""
    target = files / digest
    if target.exists():
        path.unlink()
        return
    with path.open("rb") as file:
        os.fsync(file.fileno())
    path.chmod(0o444)
    path.replace(target)
    sync_directory(files)


def sync_directory(directory: Path) -> None:
    """Make the renames in a directory survive a crash."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path, progress: Progress = silent) -> Iterator[None]:
    """Hold a file's lock; others wait for it, and say so. The kernel frees it when this process
    ends.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("Waiting for another command that makes the same", 0, None)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def work_directory(root: Path) -> Iterator[Path]:
    """A temporary directory for the block; leftovers of killed commands are removed first."""
    # One lock guards this, so that no sweep sees a directory before it is locked.
    with locked(root / "lock"):
        _sweep(root)
        directory = Path(tempfile.mkdtemp(prefix="work-", dir=root))
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        # The lock is held until this process ends, so that no sweep removes the directory.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield directory
    finally:
        _remove(directory)
        os.close(descriptor)


@contextlib.contextmanager
def storage_errors(what: str, place: Path) -> Iterator[None]:
    """Raise a StorageError in words if the disk is full or not writable.

    Raises:
        StorageError: in place of an OSError.
    """
    try:
        yield
    except CerneError:
        raise
    except OSError as error:
        if error.errno in _FORBIDDEN:
            where = _nearest(Path(error.filename or place))
            raise StorageError(
                f"{what} failed: {where} is not writable: {error.strerror}",
                hint=f"see who may write there: ls -ld {where}\n"
                "CERNE_HOME and CERNE_CACHE name other directories for data and for the cache",
            ) from error
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "the disk is full" if full else error.strerror or str(error)
        raise StorageError(
            f"{what} failed: {why}", hint=f"free some space: df -h {place}"
        ) from error


def _nearest(path: Path) -> Path:
    """The path, or the nearest directory above it that exists."""
    return next((each for each in (path, *path.parents) if each.exists()), path)


def require_checksum(path: Path, checksum: str, source: str) -> None:
    """Refuse a file that does not have the digest ``sha256:HEX`` (or sha512).

    Raises:
        ChecksumError: it has another digest.
    """
    algorithm, _, expected = checksum.rpartition(":")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, algorithm or "sha256").hexdigest()
    if found != expected.lower():
        raise ChecksumError(
            f"{source} has the checksum {found}, but {expected} was given",
            hint="fetch it again, or ask its publisher for the right checksum",
        )


def sweep_work(root: Path) -> None:
    """Remove the work directories that killed commands left, as far as this user may."""
    if any(root.glob("work-*")):
        with contextlib.suppress(OSError), locked(root / "lock"):
            _sweep(root)


def _sweep(root: Path) -> None:
    for leftover in root.glob("work-*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(leftover, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(leftover)
            finally:
                os.close(descriptor)


def _remove(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    if directory.exists() and has_own_ids():
        # Files of an unfinished system may belong to ids of a user namespace.
        command = [*as_root(), "rm", "-rf", str(directory)]
        subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True)
