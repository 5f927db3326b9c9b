"""Addresses of machines among the sockets of one host's kernel (CIDs: virtio 1.2, section 5.10)."""

from __future__ import annotations

import hashlib

_FREE = 1 << 30


def guest_cid(machine_id: str) -> int:
    """A machine's CID, which never changes and is larger than the CIDs that people choose.

    It is a digest of the machine's id, so that Cerne needs no register of CIDs: 30 bits are free,
    and two of 100 machines of a host have the same CID with a chance of one in 200,000.
    """
    digest = hashlib.sha256(f"{machine_id}/vsock".encode()).digest()
    return _FREE + int.from_bytes(digest[:4], "big") % _FREE
