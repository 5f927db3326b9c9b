"""Merges the layers of a disk into one file, which is faster, and portable to another host.

The file contains the differences from its base, an image's disk.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from cerne.errors import ImageError, StorageError
from cerne.host.programs import require_program
from cerne.storage.formats import require_self_contained
from cerne.storage.overlay import create_overlay

_TIMEOUT = 3600.0


def merge(disk: Path, base: Path | None, base_format: str) -> None:
    """Merge into an unused qcow2 disk all of its differences from its base, if it has a base.

    If this process is killed meanwhile, the disk keeps its content, as a guest sees it.

    Raises:
        StorageError: there is no space for it.
    """
    _rebase(disk, ["-b", ""] if base is None else ["-F", base_format, "-b", str(base)])


def flatten(disk: Path, base: Path, base_format: str, target: Path) -> None:
    """Write to a file all differences of a qcow2 disk and its layers from its base.

    Raises:
        StorageError: writing failed; no file is left.
    """
    create_overlay(disk, "qcow2", target)
    try:
        merge(target, base, base_format)
        # This only removes the name of the base.
        _rebase(target, ["-u", "-b", ""])
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def put_on(disk: Path, base: Path, base_format: str, base_size: int) -> None:
    """Make a file that `flatten` wrote, on any host, an overlay of its base again.

    Raises:
        ImageError: `flatten` writes no such file for this base.
        StorageError: writing failed.
    """
    found = require_self_contained(disk)
    if found.format != "qcow2" or (found.virtual_size or 0) < base_size:
        raise ImageError(f"{disk} is not a disk on top of {base}", hint="fetch the file again")
    _rebase(disk, ["-u", "-F", base_format, "-b", str(base)])


def _rebase(disk: Path, options: list[str]) -> None:
    command = [str(require_program("qemu-img")), "rebase", "-f", "qcow2", *options, str(disk)]
    environment = {"LC_ALL": "C", "PATH": os.environ.get("PATH", os.defpath)}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=_TIMEOUT, env=environment
    )
    if done.returncode != 0:
        raise StorageError(
            f"writing the disk {disk} failed: {done.stderr.strip()}",
            hint=f"free some space: df -h {disk.parent}",
        )
