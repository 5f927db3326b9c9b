"""Disks that lie on many layers made into one file, to be quicker, or to be carried elsewhere.

What it holds is what differs from its base, an image's disk.
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
    """Let a qcow2 disk that nobody has open hold all by which it differs from its base, if any.

    Whoever is killed meanwhile leaves the disk as it was, as far as a guest can tell.

    Raises:
        StorageError: there is no space for it.
    """
    _rebase(disk, ["-b", ""] if base is None else ["-F", base_format, "-b", str(base)])


def flatten(disk: Path, base: Path, base_format: str, target: Path) -> None:
    """Write all by which a qcow2 disk, with all that is under it, differs from its base.

    Raises:
        StorageError: it cannot be written; nothing is left of it.
    """
    create_overlay(disk, "qcow2", target)
    try:
        merge(target, base, base_format)
        # This only forgets the name of the base.
        _rebase(target, ["-u", "-b", ""])
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def put_on(disk: Path, base: Path, base_format: str, base_size: int) -> None:
    """Make what `flatten` wrote, wherever it comes from, an overlay of its base again.

    Raises:
        ImageError: it is nothing that `flatten` writes for this base.
        StorageError: it cannot be written.
    """
    found = require_self_contained(disk)
    if found.format != "qcow2" or (found.virtual_size or 0) < base_size:
        raise ImageError(
            f"{disk} is no disk on top of {base}", hint="fetch the file that it came in again"
        )
    _rebase(disk, ["-u", "-F", base_format, "-b", str(base)])


def _rebase(disk: Path, options: list[str]) -> None:
    command = [str(require_program("qemu-img")), "rebase", "-f", "qcow2", *options, str(disk)]
    environment = {"LC_ALL": "C", "PATH": os.environ.get("PATH", os.defpath)}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=_TIMEOUT, env=environment
    )
    if done.returncode != 0:
        raise StorageError(
            f"the disk {disk} cannot be written: {done.stderr.strip()}",
            hint=f"see that there is space: df -h {disk.parent}",
        )
