"""The name servers of this host (resolv.conf(5))."""

from __future__ import annotations

import contextlib
from ipaddress import ip_address
from pathlib import Path

RESOLV_CONF = Path("/etc/resolv.conf")
_MOST = 3


def name_servers(path: Path = RESOLV_CONF) -> list[str]:
    """The addresses of the host's name servers, of which it has at most three."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            with contextlib.suppress(ValueError):
                ip_address(words[1])
                found.append(words[1])
    return list(dict.fromkeys(found))[:_MOST]
