"""What a machine's process left is removed, whatever it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cerne.host.removal import remove_tree


def _deep(directory: Path, levels: int) -> None:
    here = os.open(directory, os.O_DIRECTORY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=here)
        os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=here))
        below = os.open("d", os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


@pytest.mark.parametrize("levels", [3, 3000])
def test_it_is_removed_however_deep_it_is_and_no_link_is_followed(
    tmp_path: Path, levels: int
) -> None:
    kept, left = tmp_path / "kept", tmp_path / "left"
    kept.mkdir()
    (kept / "file").touch()
    left.mkdir()
    (left / "link").symlink_to(kept)
    (left / "file").touch()
    _deep(left, levels)
    remove_tree(left)
    assert not left.exists()
    assert (kept / "file").exists()


def test_a_link_in_place_of_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    with pytest.raises(OSError, match="symbolic link"):
        remove_tree(tmp_path / "link")
    assert (tmp_path / "kept").exists()
