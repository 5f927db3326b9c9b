"""Imports disk images that were made elsewhere, which are not trusted.

Cerne examines a file before qemu-img reads it, names the found format to qemu-img, which never
probes, allows no backing file, and writes a qcow2 of its own. The size of the result is limited,
because a few clusters can stand for a whole disk.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from cerne.errors import ImageError, InputError, NotFoundError, StorageError
from cerne.host.programs import require_program
from cerne.images.download import fetch
from cerne.images.files import require_checksum
from cerne.images.parts import Parts
from cerne.images.progress import Progress
from cerne.storage.formats import require_self_contained
from cerne.units import GIB, format_size

LARGEST_DISK = 2048 * GIB
EXPORT_FORMATS = ("qcow2", "raw", "vmdk", "vdi", "vhdx")
_TIMEOUT = 3600.0
_LARGEST_PROCESS = 2 * GIB
"""The most memory of qemu-img, in bytes; the tables of a disk of `LARGEST_DISK` need a tenth."""
_EXPANSION = 64
"""An image may unpack to this many times its own size, in addition to a fixed allowance."""
_ALWAYS_ALLOWED = GIB
# The exit statuses of qemu-img check for leaked clusters only, and for a format without a check.
_HARMLESS = (0, 3, 63)
# Options of qemu-img for a format. We take the size of a VHD from its footer: QEMU's default takes
# it from the geometry, which cuts off the end of disks of other programs.
_OPTIONS: dict[str, dict[str, object]] = {
    "qcow2": {"backing": None},
    "vmdk": {"backing": None},
    "vpc": {"force_size_calc": "current_size"},
}
_SUFFIXES = re.compile(r"\.(qcow2|img|raw|vmdk|vdi|iso|vhdx?)$", re.IGNORECASE)
_UNFIT = re.compile(r"[^a-z0-9._-]+")
_OTHER_ADDRESS = re.compile(r"(?!file:)[A-Za-z][A-Za-z0-9+.-]*://")
_CHECKSUM = re.compile(r"(?:sha256:)?[0-9a-fA-F]{64}|sha512:[0-9a-fA-F]{128}")


def name_of(source: str) -> str:
    """A name for an image, from the last part of its source."""
    last = urlsplit(source).path.rsplit("/", 1)[-1]
    name = _UNFIT.sub("-", _SUFFIXES.sub("", last).lower()).strip("-._")[:60]
    if not name:
        raise InputError(f"{source!r} contains no name for the image", hint="give one with --name")
    return name


def import_disk(
    source: str,
    checksum: str | None,
    format_: str | None,
    work: Path,
    cache: Path,
    progress: Progress,
) -> Parts:
    """Make a disk of our own from a path or an address (see `ImageStore.import_`)."""
    if checksum is not None and not _CHECKSUM.fullmatch(checksum):
        raise InputError(f"{checksum!r} is not a checksum", hint="write it as sha256:HEX")
    if source.startswith(("http://", "https://")):
        path = fetch(source, checksum, cache, progress)
    elif _OTHER_ADDRESS.match(source):
        raise InputError(
            f"{source} is not an address that Cerne fetches from",
            hint="give an address that begins with https:// or http://, or a file of this host",
        )
    else:
        path = Path(source.removeprefix("file://")).expanduser()
        _require_file(path)
        if checksum is not None:
            require_checksum(path, checksum, source)
    found = require_self_contained(path, format_)
    size = found.virtual_size or _virtual_size(path, found.format)
    if not 0 < size <= LARGEST_DISK:
        raise ImageError(
            f"{source} declares a disk of {format_size(size)}",
            hint=f"the largest disk that Cerne imports has {format_size(LARGEST_DISK)}",
        )
    progress("Checking the disk", 0, None)
    require_whole(path, found.format)
    progress("Converting the disk", 0, None)
    disk = work / "disk.qcow2"
    limit = _ALWAYS_ALLOWED + _EXPANSION * path.stat().st_size
    convert(path, found.format, disk, "qcow2", limit)
    return Parts(disk=disk, disk_format="qcow2", disk_size=_virtual_size(disk, "qcow2"))


def convert(
    source: Path, source_format: str, target: Path, target_format: str, limit: int | None = None
) -> None:
    """Write a disk to another file in another format; a failure leaves no file.

    Args:
        limit: the most bytes that the file may have.

    Raises:
        InputError: the format is not one of `EXPORT_FORMATS`.
        ImageError: the disk is damaged, or unpacks to far more than its size.
        StorageError: there is no space for it.
    """
    if target_format not in EXPORT_FORMATS:
        raise InputError(
            f"{target_format!r} is not a format that Cerne writes",
            hint=f"take one of {', '.join(EXPORT_FORMATS)}",
        )
    words = ["convert", "-O", target_format, _node(source, source_format), str(target.absolute())]
    try:
        status, _, said = _qemu_img(words, limit)
        if status != 0:
            _raise_for(status, said, source, source_format, target)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _raise_for(status: int, said: str, source: Path, source_format: str, target: Path) -> NoReturn:
    if status == -signal.SIGXFSZ or "File too large" in said:
        raise ImageError(
            f"{source} unpacks to more than {_EXPANSION} times its size, which Cerne refuses",
            hint=f"if you trust it, convert it: qemu-img convert -O raw {source} disk.raw",
        )
    if "No space left on device" in said:
        raise StorageError(
            f"writing {target} failed: the disk is full",
            hint=f"free some space: df -h {target.parent}",
        )
    raise _unreadable(source, source_format, said)


def _require_file(path: Path) -> None:
    if not path.exists():
        raise NotFoundError(
            f"{path} does not exist", hint="name a file of this host, or an address: https://…"
        )
    if not path.is_file():
        raise ImageError(f"{path} is not a file", hint="give the path of a disk image")


def _virtual_size(disk: Path, disk_format: str) -> int:
    status, said, errors = _qemu_img(["info", "--output=json", _node(disk, disk_format)])
    if status != 0:
        raise _unreadable(disk, disk_format, errors)
    return int(json.loads(said)["virtual-size"])


def require_whole(disk: Path, disk_format: str) -> None:
    """Refuse a disk whose tables point beyond its end, such as a truncated disk.

    Raises:
        ImageError: they do, or are unreadable.
    """
    status, said, errors = _qemu_img(["check", "-q", _node(disk, disk_format)])
    if status not in _HARMLESS:
        raise _unreadable(disk, disk_format, errors or said)


def _node(path: Path, disk_format: str) -> str:
    """The name of a disk for qemu-img, with its format and without a backing file."""
    file = {"driver": "file", "filename": str(path.absolute())}
    node = {"driver": disk_format, "read-only": True, "file": file}
    node |= _OPTIONS.get(disk_format, {})
    return "json:" + json.dumps(node)


def _qemu_img(words: list[str], limit: int | None = None) -> tuple[int, str, str]:
    """Run qemu-img with `limit` as the largest file; return its status, output and errors."""
    running = subprocess.Popen(
        [require_program("qemu-img"), *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, "LC_ALL": "C"},
    )
    with running:
        try:
            # A damaged disk may declare tables that are larger than the host's memory.
            resource.prlimit(running.pid, resource.RLIMIT_AS, (_LARGEST_PROCESS, _LARGEST_PROCESS))
            if limit is not None:
                resource.prlimit(running.pid, resource.RLIMIT_FSIZE, (limit, limit))
                resource.prlimit(running.pid, resource.RLIMIT_CORE, (0, 0))
            said, errors = running.communicate(timeout=_TIMEOUT)
        except BaseException:
            running.kill()
            raise
    return running.returncode, said, errors


def _unreadable(disk: Path, disk_format: str, said: str) -> ImageError:
    lines = said.strip().splitlines()
    why = lines[-1].removeprefix("qemu-img: ") if lines else "qemu-img printed no error"
    # The message has the path already; the JSON name that qemu-img prints helps nobody.
    why = re.sub(r"(Could not open )?'json:.*?\}\}?': ", "", why)
    return ImageError(
        f"{disk} is not readable as {disk_format}: {why}",
        hint="check that it is complete: qemu-img check, or its publisher's checksum",
    )
