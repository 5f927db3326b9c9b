"""What an image is: how it boots, its disk, and whether the agent is in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ImageBoot:
    """A kernel that is booted directly."""

    kernel: Path
    """A bzImage or an ELF vmlinux."""
    initrd: Path | None
    command_line: str


@dataclass(frozen=True, slots=True)
class ImageDisk:
    """A disk that machines have an overlay of; it never changes."""

    path: Path
    format: str
    """``raw`` or ``qcow2``."""
    virtual_size: int
    """Bytes, as the guest sees them."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image of the store. What is in it never changes; its name may come to mean another."""

    name: str
    """The name that it was found by, or its digest."""
    digest: str
    """``sha256:`` and the digest of all that is in it."""
    created: float
    """When the name was given to it: seconds since the epoch."""
    source: str
    """What it was made of: a recipe, a path or an address."""
    size: int
    """Bytes that it takes on this host's disk; files shared with other images count in full."""
    boot: ImageBoot | None
    """None where the machine's firmware boots the disk."""
    disk: ImageDisk | None
    """None where it runs from memory."""
    agent: bool
    """Whether Cerne's agent is in it."""
    least_memory: int = 0
    """Bytes of memory in which it boots at all; 0 where nobody knows."""
