"""The distribution's kernel, and the modules that our guests need, from its package.

In a stock kernel every virtio driver is a module: we unpack the modules from the package and put
them into the initramfs, which loads each after the modules that it depends on (modinfo(8),
``depends``).
"""

from __future__ import annotations

import gzip
import lzma
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cerne.errors import HostError, ImageError
from cerne.images.files import locked, work_directory
from cerne.images.packages import dependency, download, newest, unpack
from cerne.images.progress import Progress
from cerne.units import MIB

WANTED = (
    "virtio_pci",
    "virtio_blk",
    "ext4",
    "virtio_net",
    "virtio_rng",
    "9pnet_virtio",
    "9p",
    "fuse",
    "overlay",
    "pvpanic_pci",
    "virtio_console",
)
"""In the order of loading; the console is last, because the host reaches the agent through it."""

LEAST_MEMORY = 80 * MIB
"""Bytes that our images need to boot with Debian's cloud kernel 6.1; it panics with 72 MiB."""

_META_PACKAGES = ("linux-image-cloud-amd64", "linux-image-amd64", "linux-image-virtual")
_IMAGE_PACKAGE = re.compile(r"linux-image-[0-9].*")
_MODULES_PACKAGE = re.compile(r"linux-modules-[0-9].*")
_ANY_CLOUD_IMAGE = re.compile(r"linux-image-[0-9.]+-[0-9]+-cloud-amd64")
_LARGEST_MODULE = 64 << 20
_DEPENDS = b"\0depends="
_ORDER = "modules.order"


@dataclass(frozen=True, slots=True)
class DistributionKernel:
    """A kernel of the distribution, unpacked in the cache."""

    kernel: Path
    """A bzImage."""
    modules: tuple[Path, ...]
    """Uncompressed modules, in the order of loading, without those that are built in."""


def distribution_kernel(cache: Path, progress: Progress) -> DistributionKernel:
    """The newest kernel of the configured distribution, fetched if the cache does not have it.

    Raises:
        HostError: apt finds no such package, or fails to fetch it.
        ImageError: the package contains no kernel.
    """
    directory = cache / "kernel"
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory / "distribution.lock", progress):
        package = _package()
        target = directory / package
        if not target.exists():
            progress(f"Fetching {package}", 0, None)
            _fetch(package, directory, target)
    order = (target / _ORDER).read_text().split()
    return DistributionKernel(target / "vmlinuz", tuple(target / f"{name}.ko" for name in order))


def _package() -> str:
    for meta in _META_PACKAGES:
        try:
            found = dependency(meta, _IMAGE_PACKAGE)
        except HostError:
            continue
        if found is not None:
            return found
    return newest(_ANY_CLOUD_IMAGE)


def _fetch(package: str, directory: Path, target: Path) -> None:
    with work_directory(directory) as work:
        tree = work / "tree"
        unpack(download(package, work), tree)
        separate = dependency(package, _MODULES_PACKAGE)
        if separate is not None:
            # Ubuntu has separate packages for the modules and for the signed kernel.
            unpack(download(separate, work), tree)
        kernels = sorted((tree / "boot").glob("vmlinuz-*"))
        if not kernels:
            raise ImageError(f"the package {package} contains no kernel")
        chosen = work / "chosen"
        chosen.mkdir()
        shutil.move(kernels[0], chosen / "vmlinuz")
        found = {_module_name(path): path for path in tree.rglob("*.ko*")}
        modules = _in_order(found)
        for name, content in modules.items():
            (chosen / f"{name}.ko").write_bytes(content)
        (chosen / _ORDER).write_text("\n".join(modules))
        chosen.rename(target)


def _module_name(path: Path) -> str:
    # A file's name may have dashes in place of the underscores of the module's name.
    return path.name.split(".")[0].replace("-", "_")


def _in_order(found: Mapping[str, Path]) -> dict[str, bytes]:
    """The wanted modules that are not built in, each after those that it depends on."""
    loaded: dict[str, bytes] = {}

    def load(name: str) -> None:
        if name in found and name not in loaded:
            content = _uncompressed(found[name])
            for other in _depends(content):
                load(other)
            loaded[name] = content

    for name in WANTED:
        load(name)
    return loaded


def _depends(module: bytes) -> list[str]:
    start = module.find(_DEPENDS)
    if start < 0:
        return []
    start += len(_DEPENDS)
    names = module[start : module.index(b"\0", start)].decode()
    return [name.replace("-", "_") for name in names.split(",") if name]


def _uncompressed(path: Path) -> bytes:
    if path.suffix == ".ko":
        return path.read_bytes()
    if path.suffix == ".xz":
        with lzma.open(path) as file:
            return file.read(_LARGEST_MODULE)
    if path.suffix == ".gz":
        with gzip.open(path) as file:
            return file.read(_LARGEST_MODULE)
    raise ImageError(
        f"{path.name} is compressed in a format that Python does not read",
        hint="build Cerne's own kernel: cerne kernel build",
    )
