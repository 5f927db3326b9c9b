"""The files of an image that was made just now, before the store keeps them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cerne.images.files import keep, sha256_of
from cerne.images.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Parts:
    """The files that a recipe or an import has made; the store may move them."""

    kernel: Path | None = None
    initrd: Path | None = None
    command_line: str = ""
    disk: Path | None = None
    disk_format: str = "raw"
    disk_size: int = 0
    agent: bool = False
    least_memory: int = 0
    """The least memory with which it boots, in bytes; 0 if that is unknown."""
    init: str = ""
    """``systemd`` if that is its first process; empty if it is the agent, or unknown."""

    def manifest(self) -> Manifest:
        """The manifest of the image of these parts; reads all of them."""
        return Manifest(
            kernel=sha256_of(self.kernel) if self.kernel else None,
            initrd=sha256_of(self.initrd) if self.initrd else None,
            command_line=self.command_line,
            disk=sha256_of(self.disk) if self.disk else None,
            disk_format=self.disk_format,
            disk_size=self.disk_size,
            agent=self.agent,
            least_memory=self.least_memory,
            init=self.init,
        )

    def keep(self, manifest: Manifest, files: Path) -> None:
        """Move the parts into the store of files; `manifest` is their manifest."""
        for path, digest in (
            (self.kernel, manifest.kernel),
            (self.initrd, manifest.initrd),
            (self.disk, manifest.disk),
        ):
            if path is not None and digest is not None:
                keep(path, digest, files)
