"""What the images' tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from cerne.images import ImageStore


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images", tmp_path / "cache")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """An empty raw disk of 1 MiB."""
    path = tmp_path / "blank.raw"
    path.write_bytes(bytes(1 << 20))
    return path
