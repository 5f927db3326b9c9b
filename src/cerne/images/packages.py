"""Fetches and unpacks packages of the distribution, without root and without installing them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from cerne.errors import HostError, ImageError
from cerne.host.programs import require_program

_TIMEOUT = 1800.0


def newest(pattern: re.Pattern[str]) -> str:
    """The name of the matching package with the highest version in its name.

    Raises:
        HostError: no package matches, or the lists of packages are missing.
    """
    names = _apt("apt-cache", "pkgnames").split()
    found = [name for name in names if pattern.fullmatch(name)]
    if not found:
        raise HostError(
            f"apt knows no package with a name like {pattern.pattern}",
            hint="fetch the lists of packages: sudo apt-get update",
        )
    return max(found, key=lambda name: [int(number) for number in re.findall(r"[0-9]+", name)])


def dependency(package: str, pattern: re.Pattern[str]) -> str | None:
    """The package with a matching name that this one depends on, or None."""
    lines = _apt("apt-cache", "depends", "--important", package).splitlines()
    names = [line.partition("Depends:")[2].strip() for line in lines]
    return next((name for name in names if pattern.fullmatch(name)), None)


def download(package: str, directory: Path) -> Path:
    """Fetch a package's file.

    Raises:
        HostError: apt failed to fetch it.
    """
    target = directory / "download"
    target.mkdir(exist_ok=True)
    _apt("apt-get", "download", package, directory=target)
    files = list(target.glob(f"{package}_*.deb"))
    if len(files) != 1:
        raise HostError(
            f"apt fetched no file for the package {package}", hint="sudo apt-get update"
        )
    return files[0]


def unpack(package: Path, directory: Path) -> None:
    """Unpack a package's files into a directory.

    Raises:
        ImageError: the file is not a package.
    """
    command: list[str | Path] = [require_program("dpkg-deb"), "-x", package, directory]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT)
    if done.returncode != 0:
        raise ImageError(f"unpacking {package.name} failed: {done.stderr.strip()}")


def _apt(program: str, *words: str, directory: Path | None = None) -> str:
    done = subprocess.run(
        [require_program(program), *words],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIMEOUT,
    )
    if done.returncode != 0:
        raise HostError(
            f"{program} {' '.join(words)} failed: {done.stderr.strip()[-300:]}",
            hint="fetch the lists of packages: sudo apt-get update",
        )
    return done.stdout
