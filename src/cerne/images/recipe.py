"""The built-in recipes of ``cerne image build``."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache as memoized
from pathlib import Path

from cerne.images.kernel import current_kernel
from cerne.images.parts import Parts
from cerne.images.progress import Progress

Build = Callable[[Path, Path, Progress], Parts]
"""Makes an image's parts in a work directory; takes the cache and a progress report."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """The recipe of one built-in image."""

    name: str
    description: str
    build: Build

    def key(self, cache: Path) -> str:
        """A text that changes if the recipe would make another image."""
        kernel = current_kernel(cache)
        return f"{self.name} {_sources_digest()} {kernel.digest if kernel else 'distribution'}"


@memoized
def _sources_digest() -> str:
    images = Path(__file__).parent
    digest = hashlib.sha256()
    parts = (*images.glob("*.py"), *images.glob("*.service"))
    for path in sorted([*parts, *(images.parent / "guest" / "agent").iterdir()]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _tiny(work: Path, cache: Path, progress: Progress) -> Parts:
    from cerne.images.tiny import build

    return build(work, cache, progress)


def _debian(suite: str) -> Build:
    def made(work: Path, cache: Path, progress: Progress) -> Parts:
        from cerne.images.debian import SERVER, build

        return build(suite, SERVER, work, cache, progress)

    return made


def _minimal_debian(suite: str) -> Build:
    def made(work: Path, cache: Path, progress: Progress) -> Parts:
        from cerne.images.debian import MINIMAL, build

        return build(suite, MINIMAL, work, cache, progress)

    return made


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("tiny", "busybox in memory, boots in a moment", _tiny),
        Recipe("debian:12", "Debian 12 (bookworm) with systemd", _debian("bookworm")),
        Recipe("debian:12-minimal", "Debian 12 without an init", _minimal_debian("bookworm")),
        Recipe("debian:13", "Debian 13 (trixie) with systemd", _debian("trixie")),
        Recipe("debian:13-minimal", "Debian 13 without an init", _minimal_debian("trixie")),
    )
}
