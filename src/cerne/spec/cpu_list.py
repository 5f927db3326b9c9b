"""Sets of a host's CPUs, as the kernel writes them: ``0-3,8`` (cpuset(7), "List format")."""

from __future__ import annotations

import re
from collections.abc import Iterable

from cerne.errors import InputError

LAST_CPU = 8191
"""The largest number of a CPU of Linux."""
_PART = re.compile(r"(?P<first>[0-9]{1,4})(?:-(?P<last>[0-9]{1,4}))?", re.ASCII)


def parse_cpu_list(text: str) -> frozenset[int]:
    """The CPUs of a list.

    Raises:
        InputError: it is not a list of CPUs.
    """
    found: set[int] = set()
    for part in text.split(","):
        match = _PART.fullmatch(part.strip())
        first = int(match["first"]) if match else 1
        last = int(match["last"] or first) if match else 0
        if not first <= last <= LAST_CPU:
            raise InputError(
                f"{text!r} is not a list of CPUs",
                hint="write it as 0-3,8: numbers of this host's CPUs, and ranges of them",
            )
        found.update(range(first, last + 1))
    return frozenset(found)


def format_cpu_list(cpus: Iterable[int]) -> str:
    """The one notation of a set of CPUs: ``0-3,8``; empty for no CPU."""
    ranges: list[list[int]] = []
    for cpu in sorted(cpus):
        if ranges and ranges[-1][1] == cpu - 1:
            ranges[-1][1] = cpu
        else:
            ranges.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
