"""Images: what machines are made of. Loaded when first used, as building needs more than using."""

from cerne.images.image import Image, ImageBoot, ImageDisk
from cerne.images.progress import Progress
from cerne.images.store import ImageStore, Parts

__all__ = ["Image", "ImageBoot", "ImageDisk", "ImageStore", "Parts", "Progress"]
