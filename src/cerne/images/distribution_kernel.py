"""The distribution's kernel and the modules that a guest of ours needs, from its package.

In a stock kernel every virtio driver is a module: they are unpacked from the package, put into the
initramfs and loaded in the order in which they need one another.
"""

from __future__ import annotations

import gzip
import lzma
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from cerne.errors import HostError, ImageError
from cerne.images.files import locked, work_directory
from cerne.images.packages import dependency, download, newest, unpack
from cerne.images.progress import Progress

MODULES = (
    "virtio",
    "virtio_ring",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "virtio_rng",
    "virtio_blk",
    "failover",
    "net_failover",
    "virtio_net",
    "netfs",
    "fscache",
    "9pnet",
    "9pnet_virtio",
    "9p",
    "crc16",
    "mbcache",
    "jbd2",
    "crc32c_generic",
    "ext4",
    "virtio_console",
)
"""In the order of loading; the console comes last, as with it the agent is reached."""

_META_PACKAGES = ("linux-image-cloud-amd64", "linux-image-amd64", "linux-image-virtual")
_IMAGE_PACKAGE = re.compile(r"linux-image-[0-9].*")
_MODULES_PACKAGE = re.compile(r"linux-modules-[0-9].*")
_ANY_CLOUD_IMAGE = re.compile(r"linux-image-[0-9.]+-[0-9]+-cloud-amd64")
_LARGEST_MODULE = 64 << 20


@dataclass(frozen=True, slots=True)
class DistributionKernel:
    """A kernel of the distribution's, unpacked in the cache."""

    kernel: Path
    """A bzImage."""
    modules: tuple[Path, ...]
    """Uncompressed, in the order of loading; what is built in is not among them."""


def distribution_kernel(cache: Path, progress: Progress) -> DistributionKernel:
    """The newest kernel of the configured distribution, fetched where the cache lacks it.

    Raises:
        HostError: it cannot be had.
        ImageError: its package has no kernel in it.
    """
    directory = cache / "kernel"
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory / "distribution.lock"):
        package = _package()
        target = directory / package
        if not target.exists():
            progress(f"Fetching {package}", 0, None)
            _fetch(package, directory, target)
    modules = tuple(path for name in MODULES if (path := target / f"{name}.ko").exists())
    return DistributionKernel(target / "vmlinuz", modules)


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
        modules = dependency(package, _MODULES_PACKAGE)
        if modules is not None:
            # Ubuntu has the modules, and signs the kernel, in packages of their own.
            unpack(download(modules, work), tree)
        kernels = sorted((tree / "boot").glob("vmlinuz-*"))
        if not kernels:
            raise ImageError(f"the package {package} has no kernel in it")
        chosen = work / "chosen"
        chosen.mkdir()
        shutil.move(kernels[0], chosen / "vmlinuz")
        for path in tree.rglob("*.ko*"):
            if path.name.split(".")[0] in MODULES:
                (chosen / f"{path.name.split('.')[0]}.ko").write_bytes(_uncompressed(path))
        chosen.rename(target)


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
        f"{path.name} is compressed in a way that cannot be read here",
        hint="build Cerne's own kernel: cerne kernel build",
    )
