"""Images, from which machines are made. Each module is imported at its first use."""

from cerne.images.image import Image, ImageBoot, ImageDisk
from cerne.images.parts import Parts
from cerne.images.progress import Progress
from cerne.images.store import ImageStore

__all__ = ["Image", "ImageBoot", "ImageDisk", "ImageStore", "Parts", "Progress"]
