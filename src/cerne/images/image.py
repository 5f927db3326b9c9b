"""The model of an image: how it boots, its disk, and whether it contains the agent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SYSTEMD = "systemd"
"""The first process of an image that systemd manages."""


@dataclass(frozen=True, slots=True)
class ImageBoot:
    """A kernel that the engine boots directly."""

    kernel: Path
    """A bzImage or an ELF vmlinux."""
    initrd: Path | None
    command_line: str


@dataclass(frozen=True, slots=True)
class ImageDisk:
    """A disk under the overlays of machines; it never changes."""

    path: Path
    format: str
    """``raw`` or ``qcow2``."""
    virtual_size: int
    """Bytes, as the guest sees them."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image of the store. Its content never changes; its name may later mean another image."""

    name: str
    """The name by which it was found, or its digest."""
    digest: str
    """``sha256:`` and the digest of its content."""
    created: float
    """When it got its name, in seconds since the epoch."""
    source: str
    """Its source: a recipe, a path or an address."""
    size: int
    """Bytes that it takes on this host's disk, with all files that it shares with other images."""
    boot: ImageBoot | None
    """None if the machine's firmware boots the disk."""
    disk: ImageDisk | None
    """None if it runs from memory."""
    agent: bool
    """Whether it contains Cerne's agent."""
    least_memory: int = 0
    """The least memory with which it boots, in bytes; 0 if that is unknown."""
    init: str = ""
    """``systemd`` if that is its first process; empty if it is the agent, or unknown."""

    @property
    def has_systemd(self) -> bool:
        """Whether systemd is its first process."""
        return self.init == SYSTEMD
