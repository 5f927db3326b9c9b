"""Images, from which machines are made. Each name is imported at its first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cerne.images.image import Image, ImageBoot, ImageDisk
    from cerne.images.parts import Parts
    from cerne.images.progress import Progress
    from cerne.images.store import ImageStore

_HOMES = {
    "Image": "cerne.images.image",
    "ImageBoot": "cerne.images.image",
    "ImageDisk": "cerne.images.image",
    "ImageStore": "cerne.images.store",
    "Parts": "cerne.images.parts",
    "Progress": "cerne.images.progress",
}

__all__ = ["Image", "ImageBoot", "ImageDisk", "ImageStore", "Parts", "Progress"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
