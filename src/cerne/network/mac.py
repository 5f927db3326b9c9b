"""Hardware addresses of machines' network cards (IEEE 802: 48 bits, locally administered)."""

from __future__ import annotations

import hashlib

_GROUP = 0b01
_LOCAL = 0b10


def mac_address(machine_id: str, index: int) -> str:
    """The address of a machine's card of this number, which never changes and is unique.

    It is a digest of the machine's id, so that Cerne needs no register of addresses: 46 bits are
    free, and two of 10,000 cards have the same address with a chance below one in a million.
    """
    digest = hashlib.sha256(f"{machine_id}/{index}".encode()).digest()
    first = digest[0] & ~_GROUP | _LOCAL
    return bytes([first, *digest[1:6]]).hex(":")


def interface_identifier(mac: str) -> int:
    """The lower 64 bits of a card's IPv6 address (RFC 4291, appendix A: modified EUI-64)."""
    digits = bytes.fromhex(mac.replace(":", ""))
    first = digits[0] ^ _LOCAL
    return int.from_bytes(bytes([first]) + digits[1:3] + b"\xff\xfe" + digits[3:])
