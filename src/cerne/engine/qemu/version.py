"""The series of the installed QEMU, such as ``7.2``, which is also that of its machines.

``q35`` of QEMU 7.2.x is the machine ``pc-q35-7.2``, whose saved state all releases of that series
read. To start QEMU for its version takes 30 ms, so that the answer is kept in a file, with the
size and the time of the program.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
from functools import cache
from pathlib import Path

from cerne.errors import HostError

_SERIES = re.compile(r"version (\d{1,4}\.\d{1,4})\b")
_TIMEOUT = 20
_LARGEST = 4096


def program_stamp(program: Path) -> str:
    """A text that changes with the program: its size and time, as a package has them."""
    status = program.stat()
    return f"{status.st_size}:{status.st_mtime_ns}"


def maps_read_files(series: str) -> bool:
    """Whether it maps a file privately that it only reads (rom=off of memory-backend-file)."""
    major, minor = map(int, series.split("."))
    return (major, minor) >= (8, 2)


def installed_series(program: Path, kept: Path | None) -> str:
    """The series of this program; `kept` is the file that keeps it, if there is one.

    Raises:
        HostError: the program did not print its version.
    """
    stamp = program_stamp(program)
    return _read(kept, stamp) or _measured(program, stamp, kept)


@cache
def _measured(program: Path, stamp: str, kept: Path | None) -> str:
    try:
        ran = subprocess.run(
            [program, "--version"], capture_output=True, timeout=_TIMEOUT, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise HostError(f"{program} did not print its version: {error}") from error
    found = _SERIES.search(ran.stdout.decode(errors="replace"))
    if found is None:
        raise HostError(
            f"{program} printed no version of QEMU", hint=f"look at: {program} --version"
        )
    if kept is not None:
        _keep(kept, stamp, found[1])
    return found[1]


def _read(kept: Path | None, stamp: str) -> str | None:
    if kept is None:
        return None
    with contextlib.suppress(OSError, ValueError, RecursionError):
        with kept.open("rb") as file:
            values = json.loads(file.read(_LARGEST))
        if isinstance(values, dict) and values.get("program") == stamp:
            series = values.get("series")
            return series if isinstance(series, str) else None
    return None


def _keep(kept: Path, stamp: str, series: str) -> None:
    # It is measured again if it is not kept, such as on a full disk.
    fresh = kept.with_name(f".{kept.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh.write_text(json.dumps({"program": stamp, "series": series}))
        fresh.replace(kept)
