"""Fetches an image over HTTP into the cache, resumes a broken download, and checks the result."""

from __future__ import annotations

import errno
import hashlib
import http.client
import shutil
import urllib.error
import urllib.request
from pathlib import Path

from cerne.errors import ChecksumError, ImageError, NotFoundError, StorageError
from cerne.images.files import locked, require_checksum
from cerne.images.progress import Progress
from cerne.units import GIB, counted, format_size

_CHUNK = 1 << 20
_SILENCE = 60.0
_LARGEST = 2048 * GIB
_DIGITS = 20
"""The most digits of a length that are accepted; Python refuses numbers of some thousands."""
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_AGAIN = "try again: with --checksum the download resumes"


def fetch(url: str, checksum: str | None, cache: Path, progress: Progress) -> Path:
    """Fetch a file, check it, and return its path in the cache.

    Two simultaneous fetches of one address share one download. A broken download is resumed only if
    a checksum is given, because the checksum proves that the result is right.

    Raises:
        NotFoundError: the server has no such file.
        ImageError: the server does not answer, the download broke, or it is larger than any image.
        StorageError: the file is larger than the free space.
        ChecksumError: the file has another checksum; it is not kept.
    """
    directory = cache / "downloads"
    directory.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(f"{url}\n{checksum or ''}".encode()).hexdigest()[:32]
    whole, part = directory / name, directory / f"{name}.part"
    with locked(directory / f"{name}.lock", progress):
        if whole.exists() and checksum is not None:
            return whole
        try:
            _receive(url, part, progress, resume=checksum is not None)
        except urllib.error.HTTPError as error:
            raise _refusal(url, error) from error
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in _DISK_FULL:
                raise
            raise ImageError(
                f"fetching {url} failed: {_why(error)}",
                hint=_AGAIN,
            ) from error
        if checksum is not None:
            _require(part, checksum, url)
        part.replace(whole)
    return whole


def _why(error: OSError | http.client.HTTPException) -> str:
    """The reason of a failure, without the system's number for it."""
    reason = getattr(error, "reason", None) or error
    return str(getattr(reason, "strerror", None) or reason or type(reason).__name__)


def _receive(url: str, part: Path, progress: Progress, *, resume: bool) -> None:
    """Receive into a file, which is kept after a failure if another call may resume it."""
    if not resume:
        part.unlink(missing_ok=True)
    try:
        _receive_rest(url, part, progress)
    except BaseException:
        if not resume:
            part.unlink(missing_ok=True)
        raise


def _receive_rest(url: str, part: Path, progress: Progress) -> None:
    begun = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url)
    if begun:
        request.add_header("Range", f"bytes={begun}-")
    try:
        answer = urllib.request.urlopen(request, timeout=_SILENCE)
    except urllib.error.HTTPError as error:
        if begun and error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            # The file is complete, or it is another file: the checksum decides.
            return
        raise
    with answer:
        resumed = answer.status == http.client.PARTIAL_CONTENT
        done = begun if resumed else 0
        length = answer.headers.get("Content-Length", "")
        total = done + int(length) if length.isdecimal() and len(length) < _DIGITS else None
        _require_room(url, part, total, done)
        with part.open("ab" if resumed else "wb") as file:
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                done += len(chunk)
                if done > _LARGEST:
                    part.unlink()
                    raise _too_large(url)
                progress("Fetching the image", done, total)
    if total is not None and done != total:
        raise ImageError(
            f"the download of {url} broke after {done} of {counted(total, 'byte')}",
            hint=_AGAIN,
        )


def _require_room(url: str, part: Path, total: int | None, done: int) -> None:
    if total is None:
        return
    if total > _LARGEST:
        raise _too_large(url)
    free = shutil.disk_usage(part.parent).free
    if total - done > free:
        raise StorageError(
            f"{url} takes {format_size(total - done)}, and {part.parent} has {format_size(free)}"
            " left",
            hint=f"free some space: df -h {part.parent}",
        )


def _too_large(url: str) -> ImageError:
    return ImageError(
        f"{url} is larger than {format_size(_LARGEST)}, the most that an image may have",
        hint="see the address",
    )


def _require(part: Path, checksum: str, url: str) -> None:
    try:
        require_checksum(part, checksum, url)
    except ChecksumError:
        part.unlink()
        raise


def _refusal(url: str, error: urllib.error.HTTPError) -> ImageError | NotFoundError:
    if error.code in (http.client.NOT_FOUND, http.client.GONE):
        return NotFoundError(f"there is nothing at {url}", hint="see the address")
    return ImageError(f"fetching {url} failed: {error.code} {error.reason}", hint="try later")
