"""The features of the host's processor on which a saved guest depends (proc(5), cpuinfo)."""

from __future__ import annotations

import hashlib
from pathlib import Path

_MATTER = ("vendor_id", "cpu family", "model", "stepping", "flags")


def processor_fingerprint(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Sixteen hexadecimal digits, equal on hosts whose processors are the same for a guest."""
    first = cpuinfo.read_text().partition("\n\n")[0]
    fields = dict(_field(line) for line in first.splitlines())
    said = "\n".join(fields.get(name, "") for name in _MATTER)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _field(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip(), value.strip()
