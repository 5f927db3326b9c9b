"""This host, by the manager of this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cerne.manager import Manager

if TYPE_CHECKING:
    from pathlib import Path

    from cerne.host.report import Report
    from cerne.images import Image, Progress
    from cerne.images.kernel import BuiltKernel
    from cerne.images.recipe import Recipe


class LocalHost(Manager):
    """The manager, with its images and its host as values."""

    def report(self) -> Report:
        """What this host can do for virtual machines, and what to improve."""
        from cerne.client import setup

        return setup.report(self.home)

    def kernels(self) -> Sequence[tuple[BuiltKernel, bool]]:
        """The guest kernels that were built here, the newest first, and whether each is current."""
        from cerne.images.kernel import built_kernels, current_kernel

        current = current_kernel(self.home.cache)
        return [(kernel, kernel == current) for kernel in built_kernels(self.home.cache)]

    def build_kernel(self, progress: Progress | None = None) -> BuiltKernel:
        """Build the guest kernel from the distribution's source; this takes minutes.

        Raises:
            CerneError: building it failed; nothing of it is left.
        """
        from cerne.images.kernel import build_kernel

        return build_kernel(self.home.cache, progress)

    def stored_images(self) -> Sequence[Image]:
        """All readable images, in the order of their names."""
        return list(self.images.list())

    def unbuilt_images(self) -> Sequence[Recipe]:
        """The recipes of built-in images that are not built yet."""
        return list(self.images.unbuilt())

    def image_names(self) -> Sequence[str]:
        """The names of all images, present or built in."""
        return list(self.images.names_available())

    def image(self, reference: str) -> Image:
        """The image of this name or digest (see `ImageStore.get`)."""
        return self.images.get(reference)

    def export_image(self, reference: str, target: Path, format_: str) -> None:
        """Write an image's disk to a file (see `ImageStore.export`)."""
        self.images.export(reference, target, format_)

    def warm_kind_of(self, machine: str) -> None:
        """Have the template of a machine's kind made in the background, if there can be one."""
        self.warm_later(self.get(machine))
