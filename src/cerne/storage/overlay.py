"""A machine's own disk: a qcow2 overlay on an image's disk, which itself never changes."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

from cerne.errors import DamagedError, StorageError
from cerne.host.programs import require_program

_TIMEOUT = 60.0
_MOST_FILES = 256
_QCOW2 = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQI")
_BACKING_FORMAT = 0xE2792ACA
_EXTENSION = struct.Struct(">II")
_HEADER_LENGTH_OFFSET = 100
_V2_HEADER_LENGTH = 72
_LONGEST_NAME = 1023
_FIRST_CLUSTER = 64 * 1024


def create_overlay(backing: Path, backing_format: str, path: Path, size: int | None = None) -> None:
    """Make a qcow2 overlay of `size` bytes, or as large as its backing file.

    Raises:
        StorageError: it cannot be written; nothing is left of it.
        MissingProgramError: qemu-img is not installed.
    """
    command: list[str | Path] = [require_program("qemu-img"), "create", "-q", "-f", "qcow2"]
    # Lazy reference counts and larger subclusters are not asked for: older QEMUs must read it.
    command += ["-F", backing_format, "-b", backing, path]
    if size is not None:
        command.append(str(size))
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=_TIMEOUT, env=_environment()
    )
    if done.returncode != 0:
        path.unlink(missing_ok=True)
        raise StorageError(
            f"the disk {path} cannot be made: {done.stderr.strip()}",
            hint=f"see that there is space: df -h {path.parent}",
        )


def chain(path: Path, form: str) -> list[tuple[Path, str]]:
    """A disk's file and the backing files under it, the top first, each with its format.

    Raises:
        DamagedError: one cannot be read, or there are more than any machine has.
    """
    files = [(path, form)]
    while files[-1][1] == "qcow2":
        backing = backing_of(files[-1][0])
        if backing is None:
            break
        if len(files) == _MOST_FILES:
            raise DamagedError(f"{path} has more than {_MOST_FILES} backing files under it")
        files.append(backing)
    return files


def backing_of(path: Path) -> tuple[Path, str] | None:
    """The file under a qcow2 file and its format, if it has one.

    Raises:
        DamagedError: it cannot be read, or does not say the format of what is under it.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_FIRST_CLUSTER)
    except OSError as error:
        raise DamagedError(f"the disk {path} cannot be read: {error.strerror}") from error
    if not head.startswith(_QCOW2) or len(head) < _HEADER_LENGTH_OFFSET + 4:
        raise DamagedError(f"the disk {path} is not in the format qcow2")
    _, version, offset, length = _HEADER.unpack_from(head)
    if offset == 0:
        return None
    if length > _LONGEST_NAME or offset + length > len(head):
        raise DamagedError(f"the disk {path} names no file that can be under it")
    name = Path(os.fsdecode(head[offset : offset + length]))
    form = _extensions(head, version).get(_BACKING_FORMAT)
    if form is None:
        raise DamagedError(f"the disk {path} does not say the format of {name} under it")
    return path.parent / name, form.decode(errors="replace")


def _extensions(head: bytes, version: int) -> dict[int, bytes]:
    """The header's extensions by their kind (docs/interop/qcow2.txt of QEMU)."""
    at = _V2_HEADER_LENGTH
    if version >= 3:
        at = int.from_bytes(head[_HEADER_LENGTH_OFFSET : _HEADER_LENGTH_OFFSET + 4], "big")
    found = {}
    while at + _EXTENSION.size <= len(head):
        kind, length = _EXTENSION.unpack_from(head, at)
        if kind == 0:
            break
        at += _EXTENSION.size
        found[kind] = head[at : at + length]
        at += length + 7 & ~7
    return found


def _environment() -> dict[str, str]:
    return {"LC_ALL": "C", "PATH": os.environ.get("PATH", os.defpath)}
