"""The guest kernel: Cerne's own if it is built, or else the distribution's.

Cerne's own kernel is built from the distribution's source package and ``kernel.config``. It has all
drivers of our guests built in, so that it boots faster, without modules and firmware. The cache
keeps it by the digest of the source's version and the configuration.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cerne.errors import HostError, ImageError, MissingProgramError
from cerne.host.programs import find_program, install_command, require_program
from cerne.images.files import locked, storage_errors, work_directory
from cerne.images.packages import dependency, download, newest, unpack
from cerne.images.progress import Progress, silent
from cerne.units import MIB

LEAST_MEMORY = 40 * MIB
"""Bytes that our images need to boot with it on both engines; on QEMU it panics with 36 MiB."""

CONFIG = Path(__file__).with_name("kernel.config")
_NAME = re.compile(r"vmlinux-(?P<version>[0-9][^-]*)-(?P<digest>[0-9a-f]{12})")
_SOURCE_PACKAGE = re.compile(r"linux-source-[0-9]+\.[0-9]+")
_BUILD_TIMEOUT = 3600.0
_HEADERS = {
    "libelf-dev": Path("/usr/include/gelf.h"),
    "libssl-dev": Path("/usr/include/openssl/opensslv.h"),
}


@dataclass(frozen=True, slots=True)
class BuiltKernel:
    """A guest kernel of Cerne's own, in the cache."""

    path: Path
    """An ELF vmlinux, which boots by PVH or the 64-bit protocol."""
    version: str
    digest: str
    """The digest of the source's version and the configuration: twelve hexadecimal digits."""


def built_kernels(cache: Path) -> list[BuiltKernel]:
    """The built kernels, the newest first."""
    found = [(path, _NAME.fullmatch(path.name)) for path in (cache / "kernel").glob("vmlinux-*")]
    kernels = [
        BuiltKernel(path, match["version"], match["digest"]) for path, match in found if match
    ]
    return sorted(kernels, key=lambda kernel: kernel.path.stat().st_mtime, reverse=True)


def current_kernel(cache: Path) -> BuiltKernel | None:
    """The kernel that was built from the present configuration, or None."""
    wanted = _config_digest()
    return next((k for k in built_kernels(cache) if k.digest.startswith(wanted)), None)


def build_kernel(cache: Path, progress: Progress | None = None) -> BuiltKernel:
    """Build the guest kernel, or take it from the cache; a build takes minutes on two CPUs.

    Two simultaneous builds share one.

    Raises:
        MissingProgramError: a program that builds kernels is not installed.
        HostError: apt finds no source package.
        ImageError: the kernel did not compile; the log is kept.
    """
    directory = cache / "kernel"
    directory.mkdir(parents=True, exist_ok=True)
    report = progress or silent
    with locked(directory / "build.lock", report):
        current = current_kernel(cache)
        if current is not None:
            return current
        _require_tools()
        with storage_errors("building the guest kernel", cache), work_directory(directory) as work:
            tree, version = _source(work, report)
            _configure(tree)
            _compile(tree, directory / "build.log", report)
            # The first half is the configuration's digest, which lookups use; the second is the
            # source's.
            digest = _config_digest() + hashlib.sha256(version.encode()).hexdigest()[:6]
            target = directory / f"vmlinux-{version}-{digest}"
            stripped = tree / "vmlinux.stripped"
            _run(["objcopy", "--strip-debug", tree / "vmlinux", stripped], tree)
            with stripped.open("rb") as file:
                os.fsync(file.fileno())
            stripped.chmod(0o444)
            stripped.replace(target)
    return BuiltKernel(target, version, digest)


def _config_digest() -> str:
    return hashlib.sha256(CONFIG.read_bytes()).hexdigest()[:6]


def _require_tools() -> None:
    tools = ("gcc", "make", "flex", "bison", "bc")
    missing = [tool for tool in tools if find_program(tool) is None]
    if missing:
        raise MissingProgramError(
            f"building a kernel needs {', '.join(missing)}, which this host does not have",
            hint=install_command(*missing),
        )
    headers = [package for package, header in _HEADERS.items() if not header.exists()]
    if headers:
        raise HostError(
            f"building a kernel needs {', '.join(headers)}, which this host does not have",
            hint=f"sudo apt-get install -y {' '.join(headers)}",
        )


def _source(work: Path, progress: Progress) -> tuple[Path, str]:
    """Fetch and unpack the distribution's source package; return the tree and the version."""
    # The distribution maintains its default kernel; the newest may come from its backports.
    package = dependency("linux-source", _SOURCE_PACKAGE) or newest(_SOURCE_PACKAGE)
    progress("Fetching the kernel's source", 0, None)
    unpack(download(package, work), work / "package")
    archives = list((work / "package" / "usr" / "src").glob("linux-source-*.tar.xz"))
    if len(archives) != 1:
        raise ImageError(f"the package {package} contains no kernel source")
    progress("Unpacking the kernel's source", 0, None)
    tree = work / "linux"
    tree.mkdir()
    _run(["tar", "-xf", archives[0], "-C", tree, "--strip-components=1"], work)
    shutil.rmtree(work / "package")
    return tree, _run(["make", "-s", "kernelversion"], tree).strip()


def _configure(tree: Path) -> None:
    shutil.copyfile(CONFIG, tree / ".config")
    _run(["make", "-s", "olddefconfig"], tree)


def _compile(tree: Path, log: Path, progress: Progress) -> None:
    cpus = len(os.sched_getaffinity(0))
    command = ["make", f"-j{cpus}", "vmlinux"]
    with log.open("w") as output:
        build = subprocess.Popen(
            command, cwd=tree, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            for done, line in enumerate(_lines(build)):
                output.write(line)
                progress("Compiling the kernel", done, None)
            status = build.wait(_BUILD_TIMEOUT)
        except BaseException:
            build.kill()
            build.wait()
            raise
    if status != 0:
        raise ImageError("the guest kernel did not compile", hint=f"read the log: {log}")


def _lines(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    yield from process.stdout


def _run(command: list[str | Path], directory: Path) -> str:
    require_program(str(command[0]))
    done = subprocess.run(
        command, cwd=directory, capture_output=True, text=True, check=False, timeout=_BUILD_TIMEOUT
    )
    if done.returncode != 0:
        raise ImageError(f"{command[0]} failed: {done.stderr.strip()[-500:]}")
    return done.stdout
