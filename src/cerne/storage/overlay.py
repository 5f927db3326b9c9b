"""A machine's own disk: a qcow2 overlay on an image's disk, which itself never changes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from cerne.errors import StorageError
from cerne.host.programs import require_program

_TIMEOUT = 60.0


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


def _environment() -> dict[str, str]:
    return {"LC_ALL": "C", "PATH": os.environ.get("PATH", os.defpath)}
