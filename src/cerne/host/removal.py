"""Removes directories in which a machine's process, perhaps in an attacker's hands, made files."""

from __future__ import annotations

import os
import shutil
import stat
import uuid
from pathlib import Path

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(directory: Path) -> None:
    """Remove a directory and all in it, however deep it is; follow no link.

    Raises:
        OSError: there is none, or removing it failed.
    """
    try:
        shutil.rmtree(directory)
    except RecursionError:
        # It calls itself for each level. A few thousand take less than a second to make.
        top = os.open(directory, _OPEN)
        try:
            _empty(top)
        finally:
            os.close(top)
        directory.rmdir()


def _empty(top: int) -> None:
    """Remove all in an open directory: what is two levels below it is moved up first."""
    while names := _names(top):
        for name in names:
            if not _is_directory(name, top):
                os.unlink(name, dir_fd=top)
                continue
            below = os.open(name, _OPEN, dir_fd=top)
            try:
                for each in _names(below):
                    if _is_directory(each, below):
                        os.rename(each, uuid.uuid4().hex, src_dir_fd=below, dst_dir_fd=top)
                    else:
                        os.unlink(each, dir_fd=below)
            finally:
                os.close(below)
            os.rmdir(name, dir_fd=top)


def _names(directory: int) -> list[str]:
    with os.scandir(directory) as entries:
        return [each.name for each in entries]


def _is_directory(name: str, directory: int) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
