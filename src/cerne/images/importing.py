"""Taking disk images that others made: nothing in them is trusted, no file that they name is read.

A file is examined before qemu-img sees it, is told to qemu-img in the format that was found and
never probed again, and becomes a qcow2 of our own without any backing file.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

from cerne.errors import ImageError, InputError, NotFoundError
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
_SUFFIXES = re.compile(r"\.(qcow2|img|raw|vmdk|vdi|iso|vhdx)$", re.IGNORECASE)
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
    source: str, checksum: str | None, work: Path, cache: Path, progress: Progress
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
    found = require_self_contained(path)
    if not 0 < found.virtual_size <= LARGEST_DISK:
        raise ImageError(
            f"{source} says that it is a disk of {format_size(found.virtual_size)}",
            hint=f"at most {format_size(LARGEST_DISK)} are taken",
        )
    progress("Converting the disk", 0, None)
    disk = work / "disk.qcow2"
    convert(path, found.format, disk, "qcow2")
    return Parts(disk=disk, disk_format="qcow2", disk_size=_virtual_size(disk))


def convert(source: Path, source_format: str, target: Path, target_format: str) -> None:
    """Write a disk to another file in another format; where that fails nothing is left.

    Raises:
        InputError: the format is none of `EXPORT_FORMATS`.
        ImageError: the disk is damaged.
    """
    if target_format not in EXPORT_FORMATS:
        raise InputError(
            f"{target_format!r} is no format that can be written",
            hint=f"take one of {', '.join(EXPORT_FORMATS)}",
        )
    command: list[str | Path] = [require_program("qemu-img"), "convert", "-f", source_format]
    command += ["-O", target_format, source, target]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_TIMEOUT
        )
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    if done.returncode != 0:
        target.unlink(missing_ok=True)
        said = done.stderr.strip().splitlines()
        why = said[-1].removeprefix("qemu-img: ") if said else "qemu-img said nothing"
        raise ImageError(
            f"{source} cannot be read as {source_format}: {why}",
            hint="see whether it is whole: qemu-img check, or its publisher's checksum",
        )


def _require_file(path: Path) -> None:
    if not path.exists():
        raise NotFoundError(f"{path} does not exist", hint="see the path")
    if not path.is_file():
        raise ImageError(f"{path} is no file", hint="give the path of a disk image")


def _virtual_size(disk: Path) -> int:
    command: list[str | Path] = [
        require_program("qemu-img"),
        "info",
        "--output=json",
        "-f",
        "qcow2",
        disk,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_TIMEOUT)
    return int(json.loads(done.stdout)["virtual-size"])
