"""As much of DNS (RFC 1035) as the trials need: one question, and the addresses that answer it."""

from __future__ import annotations

import socket
import struct
import sys
from ipaddress import ip_address

A, PTR, AAAA = 1, 12, 28
_HEADER = struct.Struct("!6H")
_PATIENCE = 3.0


def _name(text: str) -> bytes:
    labels = text.rstrip(".").split(".")
    return b"".join(bytes([len(label)]) + label.encode() for label in labels) + b"\0"


def _read_name(packet: bytes, at: int) -> tuple[str, int]:
    labels = []
    end = -1
    while length := packet[at]:
        if length >= 0xC0:
            end = at + 2 if end < 0 else end
            at = (length & 0x3F) << 8 | packet[at + 1]
            continue
        labels.append(packet[at + 1 : at + 1 + length].decode())
        at += 1 + length
    return ".".join(labels), (at + 1 if end < 0 else end)


def ask(server: str, name: str, kind: int, source: str = "", port: int = 0) -> list[str]:
    """The answers of a server, as texts; raises OSError if it does not answer."""
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as asking:
        asking.settimeout(_PATIENCE)
        # Link-local addresses have a scope, which a pair has no place for.
        if source:
            asking.bind(socket.getaddrinfo(source, port, family)[0][4])
        asking.connect(socket.getaddrinfo(server, 53, family)[0][4])
        asking.send(_HEADER.pack(7, 0x0100, 1, 0, 0, 0) + _name(name) + struct.pack("!2H", kind, 1))
        packet = asking.recv(4096)
    count = _HEADER.unpack_from(packet)[3]
    _, at = _read_name(packet, _HEADER.size)
    at += 4
    found = []
    for _ in range(count):
        _, at = _read_name(packet, at)
        answered, _, _, length = struct.unpack_from("!2HIH", packet, at)
        at += 10
        if answered == PTR:
            found.append(_read_name(packet, at)[0])
        elif answered in (A, AAAA):
            found.append(str(ip_address(packet[at : at + length])))
        at += length
    return found


def answer(packet: bytes, names: dict[str, list[str]]) -> bytes:
    """The answer to a question, of a server that knows these names."""
    name, at = _read_name(packet, _HEADER.size)
    kind = struct.unpack_from("!H", packet, at)[0]
    known = [ip_address(text) for text in names.get(name.lower(), [])]
    found = [each for each in known if kind == (A if each.version == 4 else AAAA)]
    records = b"".join(
        b"\xc0\x0c" + struct.pack("!2HIH", kind, 1, 60, len(each.packed)) + each.packed
        for each in found
    )
    identity = struct.unpack_from("!H", packet)[0]
    status = 0x8580 if name.lower() in names else 0x8583
    head = _HEADER.pack(identity, status, 1, len(found), 0, 0)
    return head + packet[_HEADER.size : at + 4] + records


if __name__ == "__main__":
    server, name, kind, source, port = sys.argv[1:]
    print("\n".join(ask(server, name, int(kind), source, int(port))))
