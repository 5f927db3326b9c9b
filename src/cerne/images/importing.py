"""Taking disk images that others made: nothing in them is trusted, no file that they name is read.

A file is examined before qemu-img sees it, is told to qemu-img in the format that was found and
never probed again, with no backing file whatever it says, and becomes a qcow2 of our own. How much
may be written for it is bounded, as a few clusters can stand for a whole disk.
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
from cerne.images.progress import Progress
from cerne.images.store import Parts
from cerne.storage.formats import require_self_contained
from cerne.units import GIB, format_size

LARGEST_DISK = 2048 * GIB
EXPORT_FORMATS = ("qcow2", "raw", "vmdk", "vdi", "vhdx")
_TIMEOUT = 3600.0
_LARGEST_PROCESS = 2 * GIB
"""Bytes of memory that qemu-img may have; the tables of a disk of `LARGEST_DISK` need a tenth."""
_EXPANSION = 64
"""How many times its own size an image may unpack to, beyond what any may."""
_ALWAYS_ALLOWED = GIB
# The exit status of qemu-img check where leaked clusters are all that is wrong, and where the
# format has nothing to check.
_HARMLESS = (0, 3, 63)
# What qemu-img is told of a format. The size of a VHD is what its footer says: by its geometry, as
# QEMU takes it by default, disks of other programs would lose their end.
_OPTIONS: dict[str, dict[str, object]] = {
    "qcow2": {"backing": None},
    "vmdk": {"backing": None},
    "vpc": {"force_size_calc": "current_size"},
}
_SUFFIXES = re.compile(r"\.(qcow2|img|raw|vmdk|vdi|iso|vhdx?)$", re.IGNORECASE)
_UNFIT = re.compile(r"[^a-z0-9._-]+")
_CHECKSUM = re.compile(r"(?:sha256:)?[0-9a-fA-F]{64}|sha512:[0-9a-fA-F]{128}")


def name_of(source: str) -> str:
    """A name for an image, made of the last part of where it comes from."""
    last = urlsplit(source).path.rsplit("/", 1)[-1]
    name = _UNFIT.sub("-", _SUFFIXES.sub("", last).lower()).strip("-._")[:60]
    if not name:
        raise InputError(f"no name can be made of {source!r}", hint="give one with --name")
    return name


def import_disk(
    source: str,
    checksum: str | None,
    format_: str | None,
    work: Path,
    cache: Path,
    progress: Progress,
) -> Parts:
    """Make a disk of our own of a path or an address (see `ImageStore.import_`)."""
    if checksum is not None and not _CHECKSUM.fullmatch(checksum):
        raise InputError(f"{checksum!r} is no checksum", hint="write it as sha256:HEX")
    if source.startswith(("http://", "https://")):
        path = fetch(source, checksum, cache, progress)
    else:
        path = Path(source.removeprefix("file://")).expanduser()
        _require_file(path)
        if checksum is not None:
            require_checksum(path, checksum, source)
    found = require_self_contained(path, format_)
    size = found.virtual_size or _virtual_size(path, found.format)
    if not 0 < size <= LARGEST_DISK:
        raise ImageError(
            f"{source} says that it is a disk of {format_size(size)}",
            hint=f"at most {format_size(LARGEST_DISK)} are taken",
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
    """Write a disk to another file in another format; where that fails nothing is left.

    Args:
        limit: bytes that the file may have at most.

    Raises:
        InputError: the format is none of `EXPORT_FORMATS`.
        ImageError: the disk is damaged, or unpacks to far more than its size.
        StorageError: there is no space for it.
    """
    if target_format not in EXPORT_FORMATS:
        raise InputError(
            f"{target_format!r} is no format that can be written",
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
            f"{source} unpacks to {_EXPANSION} times its size, which no honest disk does",
            hint=f"where you trust it: qemu-img convert -O raw {source} disk.raw",
        )
    if "No space left on device" in said:
        raise StorageError(
            f"{target} cannot be written: the disk is full",
            hint=f"see that there is space: df -h {target.parent}",
        )
    raise _unreadable(source, source_format, said)


def _require_file(path: Path) -> None:
    if not path.exists():
        raise NotFoundError(
            f"{path} does not exist", hint="name a file of this host, or an address: https://…"
        )
    if not path.is_file():
        raise ImageError(f"{path} is no file", hint="give the path of a disk image")


def _virtual_size(disk: Path, disk_format: str) -> int:
    status, said, errors = _qemu_img(["info", "--output=json", _node(disk, disk_format)])
    if status != 0:
        raise _unreadable(disk, disk_format, errors)
    return int(json.loads(said)["virtual-size"])


def require_whole(disk: Path, disk_format: str) -> None:
    """Refuse a disk whose tables lead beyond its end, as those of a truncated one do.

    Raises:
        ImageError: they do, or cannot be read.
    """
    status, said, errors = _qemu_img(["check", "-q", _node(disk, disk_format)])
    if status not in _HARMLESS:
        raise _unreadable(disk, disk_format, errors or said)


def _node(path: Path, disk_format: str) -> str:
    """Names a disk to qemu-img so that it neither guesses a format nor opens a backing file."""
    file = {"driver": "file", "filename": str(path.absolute())}
    node = {"driver": disk_format, "read-only": True, "file": file}
    node |= _OPTIONS.get(disk_format, {})
    return "json:" + json.dumps(node)


def _qemu_img(words: list[str], limit: int | None = None) -> tuple[int, str, str]:
    """Run qemu-img, which may write no file larger than `limit`; status, output and errors."""
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
            # A damaged disk's tables can be read as larger than any host's memory.
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
    why = lines[-1].removeprefix("qemu-img: ") if lines else "qemu-img said nothing"
    # The path stands before it; the JSON that names it to qemu-img says nothing to people.
    why = re.sub(r"(Could not open )?'json:.*?\}\}?': ", "", why)
    return ImageError(
        f"{disk} cannot be read as {disk_format}: {why}",
        hint="see whether it is whole: qemu-img check, or its publisher's checksum",
    )
