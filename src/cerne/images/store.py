"""The images of one home: built by recipes or imported, stored by digest, found by name."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

from cerne.errors import (
    ChecksumError,
    ConflictError,
    DamagedError,
    ImageError,
    InputError,
    NotFoundError,
)
from cerne.images.files import (
    locked,
    storage_errors,
    sweep_work,
    sync_directory,
    work_directory,
    write_whole,
)
from cerne.images.image import Image, ImageBoot, ImageDisk
from cerne.images.manifest import Manifest, decoded
from cerne.images.parts import Parts
from cerne.images.progress import Progress, silent
from cerne.images.recipe import RECIPES, Recipe

_log = logging.getLogger(__name__)

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}(?::[A-Za-z0-9][A-Za-z0-9._-]{0,62})?")
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{12,64})")
_FILES = "files"
_MANIFESTS = "manifests"
_NAMES = "names"
_WORK = "work"
_NAMES_SHOWN = 12


class ImageStore:
    """Images under one directory; `cache` holds files that several homes share."""

    def __init__(self, root: Path, cache: Path) -> None:
        self._root = root
        self._cache = cache
        with storage_errors(f"making the directory {root}", root.parent):
            for directory in (_FILES, _MANIFESTS, _NAMES, _WORK):
                (root / directory).mkdir(mode=0o700, parents=True, exist_ok=True)
        with storage_errors(f"making the directory {cache}", cache):
            self._cache.mkdir(parents=True, exist_ok=True)
        self._sweep()

    def _sweep(self) -> None:
        """Remove the leftovers of commands that were killed while they made images."""
        for place in (self._root / _WORK, self._cache / "debian", self._cache / "kernel"):
            sweep_work(place)

    def unbuilt(self) -> Iterator[Recipe]:
        """The recipes without an image here; their images are built at their first use."""
        there = {path.name for path in self._name_files()}
        yield from (recipe for recipe in RECIPES.values() if recipe.name not in there)

    def list(self) -> Iterator[Image]:
        """All readable images that have a name, in the order of their names."""
        for path in sorted(self._name_files()):
            try:
                yield self._named(path)
            except DamagedError as error:
                if path.exists():
                    _log.warning("%s", error.message)

    def names_available(self) -> Iterator[str]:
        """The names of all images here, and of those that Cerne can build."""
        names = {path.name for path in (self._root / _NAMES).iterdir()} | set(RECIPES)
        yield from sorted(name for name in names if not name.startswith("."))

    def digest_of(self, reference: str) -> str:
        """The digest of the image with this name or digest; its files may be missing.

        Raises:
            NotFoundError: there is none.
            DamagedError: the file of the name is unreadable.
        """
        path = self._root / _NAMES / reference
        if _NAME.fullmatch(reference) and path.exists():
            return f"sha256:{self._note(path)[0]}"
        return f"sha256:{self._unnamed(reference).stem}"

    def unnamed(self) -> tuple[str, ...]:
        """The digests of the images that have no name, because another image took it."""
        named = {self._note(path)[0] for path in self._name_files()}
        stored = (path.stem for path in (self._root / _MANIFESTS).glob("*.json"))
        return tuple(sorted(f"sha256:{digest}" for digest in stored if digest not in named))

    def names_of(self, digest: str) -> tuple[str, ...]:
        """The names of the image with this digest."""
        bare = digest.removeprefix("sha256:")
        names = (path.name for path in self._name_files() if self._note(path)[0] == bare)
        return tuple(sorted(names))

    def get(self, reference: str) -> Image:
        """The image with this name, or with this digest or beginning of a digest.

        Raises:
            NotFoundError: there is none.
            DamagedError: its manifest or its name is unreadable.
        """
        path = self._root / _NAMES / reference
        if _NAME.fullmatch(reference) and path.exists():
            try:
                return self._named(path)
            except DamagedError as error:
                if path.exists():
                    raise
                raise self._unknown(reference) from error
        manifest = self._unnamed(reference)
        name = f"sha256:{manifest.stem[:12]}"
        return self._image(name, manifest.stem, manifest.stat().st_mtime, "")

    def present(self, reference: str) -> Image | None:
        """The image with this name; None if it is a built-in one that is to be built first.

        Raises:
            NotFoundError: there is no image and no recipe with this name.
        """
        recipe = RECIPES.get(reference)
        return self.get(reference) if recipe is None else self._current(recipe)

    def build(self, reference: str, progress: Progress | None = None) -> Image:
        """Build a built-in recipe's image, even if there is a current one.

        Two simultaneous builds share one: the second waits, and takes the image of the first.

        Raises:
            NotFoundError: there is no such recipe.
            CerneError: building it failed; nothing is left of it.
        """
        recipe = RECIPES.get(reference)
        if recipe is None:
            raise self._unknown(reference)
        asked = time.time()
        with locked(self._root / _WORK / f"{reference}.lock", progress or silent):
            current = self._current(recipe)
            if current is not None and current.created >= asked:
                return current
            key = recipe.key(self._cache)
            with (
                storage_errors(f"building {reference}", self._root),
                work_directory(self._root / _WORK) as work,
            ):
                _log.debug("building %s", reference)
                parts = recipe.build(work, self._cache, progress or silent)
                manifest = parts.manifest()
                with locked(self._files_lock):
                    return self._keep(reference, parts, manifest, f"recipe {reference}", key)

    def import_(
        self,
        source: str,
        name: str | None = None,
        *,
        checksum: str | None = None,
        format_: str | None = None,
        replace: bool = False,
        progress: Progress | None = None,
    ) -> Image:
        """Take a disk image (qcow2, raw, vmdk, vdi, vhdx, VHD, ISO) from a path or an address.

        Args:
            checksum: the checksum that it must have, as ``sha256:HEX``.
            format_: its format; ``raw`` is accepted even for a disk that looks like another format.
            replace: whether to take the name from another image that has it.

        Raises:
            InputError: the name is not valid for an image, or is a recipe's.
            ConflictError: the name is another image's, and `replace` was not given.
            ImageError: it is damaged, is not an image, or refers to other files.
            ChecksumError: it has another checksum.
            NotFoundError: there is nothing at `source`.
        """
        from cerne.images.importing import import_disk, name_of

        chosen = name or name_of(source)
        # Checked before anything is fetched; `add` checks again.
        self.require_free(chosen, replace=replace)
        with (
            storage_errors(f"importing {source}", self._root),
            work_directory(self._root / _WORK) as work,
        ):
            parts = import_disk(source, checksum, format_, work, self._cache, progress or silent)
            return self.add(chosen, parts, source=source, replace=replace)

    def add(
        self,
        name: str,
        parts: Parts,
        *,
        source: str,
        replace: bool = False,
        digest: str | None = None,
    ) -> Image:
        """Store an image under a name. Its files are moved, and must be on this file system.

        Args:
            digest: the digest that it must have, as ``sha256:HEX``.

        Raises:
            InputError: the name is not valid for an image, or is a recipe's.
            ConflictError: the name is another image's, and `replace` was not given.
            ChecksumError: it has another digest; nothing is stored.
        """
        with storage_errors(f"keeping {name}", self._root):
            # Computed before the lock is taken, because it reads all files.
            manifest = parts.manifest()
        found = f"sha256:{manifest.digest()}"
        if digest not in (None, found):
            raise ChecksumError(
                f"the image of {source} has the digest {found}, but {digest} was given",
                hint="fetch it again, or ask its publisher for the right digest",
            )
        with locked(self._files_lock):
            self.require_free(name, replace=replace)
            return self._keep(name, parts, manifest, source, "")

    @contextlib.contextmanager
    def making(self, what: str) -> Iterator[Path]:
        """A work directory on the file system of the images, for what `add` is to store.

        Raises:
            StorageError: in the words of `what`, in place of an OSError in the block.
        """
        with storage_errors(what, self._root), work_directory(self._root / _WORK) as work:
            yield work

    def require_free(self, name: str, *, replace: bool) -> None:
        """Refuse a name that a new image cannot have.

        Raises:
            InputError: the name is not valid for an image, or is a recipe's.
            ConflictError: the name is another image's, and `replace` was not given.
        """
        if name in RECIPES:
            raise InputError(
                f"{name} is the name of an image that Cerne builds",
                hint="give another name",
            )
        if (self._root / _NAMES / _checked_name(name)).exists() and not replace:
            raise ConflictError(
                f"there is an image named {name} already",
                hint=f"give another name, remove that one: cerne image rm {name},"
                " or give its name to the new one: --replace",
            )

    @property
    def _files_lock(self) -> Path:
        return self._root / _WORK / "files.lock"

    def _keep(self, name: str, parts: Parts, manifest: Manifest, source: str, key: str) -> Image:
        """Store an image under a name; the caller holds the lock of the files."""
        with storage_errors(f"keeping {name}", self._root):
            parts.keep(manifest, self._root / _FILES)
            digest = manifest.digest()
            write_whole(self._root / _MANIFESTS / f"{digest}.json", manifest.encoded())
            note = {"digest": digest, "created": time.time(), "source": source, "key": key}
            write_whole(self._root / _NAMES / name, json.dumps(note).encode())
        return self.get(name)

    def remove(self, reference: str) -> None:
        """Remove an image's name, and its files that no other image uses.

        Raises:
            NotFoundError: there is none.
            ConflictError: `reference` is a digest, and the image has a name.
        """
        with locked(self._files_lock):
            digest = self.digest_of(reference)
            others = [name for name in self.names_of(digest) if name != reference]
            path = self._root / _NAMES / reference
            if others and not path.exists():
                raise ConflictError(
                    f"{reference} is the image {others[0]}",
                    hint=f"remove it by its name: cerne image rm {' '.join(others)}",
                )
            path.unlink(missing_ok=True)
            if not others:
                (self._root / _MANIFESTS / f"{digest.removeprefix('sha256:')}.json").unlink()
            self._collect()

    def export(self, reference: str, target: Path, format_: str = "qcow2") -> None:
        """Write an image's disk to a file, in a format that qemu-img writes.

        Raises:
            NotFoundError: there is no such image.
            ImageError: it has no disk, or qemu-img fails to write it.
            InputError: the file exists already.
        """
        from cerne.images.importing import convert

        image = self.get(reference)
        if image.disk is None:
            raise ImageError(
                f"{reference} has no disk: it runs from memory",
                hint=f"see the paths of its kernel and initramfs: cerne image inspect {reference}",
            )
        if target.exists():
            raise InputError(f"{target} exists already", hint="give another path")
        directory = target.absolute().parent
        if not directory.is_dir():
            raise InputError(
                f"the directory {directory} does not exist",
                hint=f"make it first: mkdir -p {quote(str(directory))}",
            )
        with storage_errors(f"exporting {reference}", target.parent):
            convert(image.disk.path, image.disk.format, target, format_)
            sync_directory(directory)

    def _current(self, recipe: Recipe) -> Image | None:
        """The recipe's last image, if the recipe would make the same one now."""
        path = self._root / _NAMES / recipe.name
        if not path.exists() or self._note(path)[3] != recipe.key(self._cache):
            return None
        return self._named(path)

    def _unknown(self, reference: str) -> NotFoundError:
        import difflib

        if reference in RECIPES:
            return NotFoundError(
                f"the image {reference} is not built",
                hint=f"build it: cerne image build {reference}",
            )
        names = sorted(self.names_available())
        near = difflib.get_close_matches(reference, names, _NAMES_SHOWN)
        shown = reference if len(reference) <= 80 else f"{reference[:80]}…"
        said = f"did you mean {' or '.join(near)}?\n" if near else ""
        more = ", …" if len(names) > _NAMES_SHOWN else ""
        return NotFoundError(
            f"there is no image named {shown!r}",
            hint=f"{said}images here, and images that Cerne builds:"
            f" {', '.join(names[:_NAMES_SHOWN])}{more}\n"
            "import another one: cerne image import PATH|ADDRESS",
        )

    def _named(self, path: Path) -> Image:
        digest, created, source, _ = self._note(path)
        return self._image(path.name, digest, created, source)

    def _note(self, path: Path) -> tuple[str, float, str, str]:
        try:
            note = json.loads(path.read_bytes())
            return note["digest"], note["created"], note["source"], note["key"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedError(
                f"{path} names no image",
                hint=f"remove it and make the image again: rm {path}",
            ) from error

    def _image(self, name: str, digest: str, created: float, source: str) -> Image:
        path = self._root / _MANIFESTS / f"{digest}.json"
        try:
            manifest = decoded(path.read_bytes(), str(path))
            size = sum(self._file(part).stat().st_blocks * 512 for part in manifest.files())
        except FileNotFoundError as error:
            raise DamagedError(
                f"the image {name} is incomplete: {error.filename} is missing",
                hint=f"make it again: cerne image rm {name}; cerne image build {name}",
            ) from error
        boot = disk = None
        if manifest.kernel:
            initrd = self._file(manifest.initrd) if manifest.initrd else None
            boot = ImageBoot(self._file(manifest.kernel), initrd, manifest.command_line)
        if manifest.disk:
            file = self._file(manifest.disk)
            disk = ImageDisk(file, manifest.disk_format, manifest.disk_size)
        return Image(
            name,
            f"sha256:{digest}",
            created,
            source,
            size,
            boot,
            disk,
            agent=manifest.agent,
            least_memory=manifest.least_memory,
            init=manifest.init,
        )

    def _unnamed(self, reference: str) -> Path:
        """The manifest of the image with this digest or beginning of a digest."""
        digest = _DIGEST.fullmatch(reference)
        found = sorted((self._root / _MANIFESTS).glob(f"{digest[1]}*.json")) if digest else []
        if len(found) != 1:
            raise self._unknown(reference)
        return found[0]

    def _file(self, digest: str) -> Path:
        return self._root / _FILES / digest

    def _name_files(self) -> Iterator[Path]:
        return (path for path in (self._root / _NAMES).iterdir() if path.name[0] != ".")

    def _collect(self) -> None:
        """Remove the files that no image uses; remove none if a manifest is unreadable."""
        used: set[str] = set()
        try:
            for path in (self._root / _MANIFESTS).glob("*.json"):
                used |= decoded(path.read_bytes(), str(path)).files()
        except DamagedError as error:
            _log.warning("no files of images are removed: %s", error.message)
            return
        for file in (self._root / _FILES).iterdir():
            if file.name not in used:
                file.unlink()


def _checked_name(name: str) -> str:
    # A name that looks like a digest would hide the image with that digest.
    if not _NAME.fullmatch(name) or _DIGEST.fullmatch(name):
        shown = name if len(name) <= 40 else f"{name[:40]}…"
        raise InputError(
            f"{shown!r} is not a valid name for an image",
            hint="use lower-case letters, digits, dots and dashes, and a version after a colon",
        )
    return name
