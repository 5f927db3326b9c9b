"""Asks the host's name servers for a guest: a datagram of DNS (RFC 1035) to each in turn.

A server that does not answer, or does not know, is no end: the next one is asked. The host's own
resolver on its loopback (systemd-resolved, dnsmasq) is asked like any other, since the questions
come from a process of the host.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable

from cerne.network.user import GATEWAY, RESOLVER_DIRECTORY

_FILES = ("/etc/resolv.conf", f"{RESOLVER_DIRECTORY}/resolv.conf")
_USUAL = "127.0.0.1"
"""The server of a host that names none (resolv.conf(5))."""
_DNS = 53
_PATIENCE = 1.5
"""Seconds after which the next server is asked too."""
_LAST_PATIENCE = 4.0
_MOST = 64
"""Questions of one guest at the same time; the oldest is given up for another one."""
_HEADER = 12
_LARGEST_FILE, _LARGEST_ANSWER = 65536, 65535
LARGEST_REPLY = 1472
"""Bytes of an answer that fit into a frame."""
_QR, _TC, _RD, _RA = 0x80, 0x02, 0x01, 0x80
_SERVFAIL, _REFUSED = 2, 5


def host_name_servers(root: str = "") -> list[str]:
    """The addresses of the host's name servers, in their order.

    The servers behind systemd-resolved come after it: they are asked if it does not answer.
    """
    found: list[str] = []
    for file in _FILES:
        words = [line.split() for line in _text(f"{root}{file}").splitlines()]
        found += [each[1] for each in words if len(each) > 1 and each[0] == "nameserver"]
    return list(dict.fromkeys(found)) or [_USUAL]


HOST_NAME = "host.cerne.internal"
"""The name of the gateway, for guests that may reach ports of the host there."""
GATEWAY_NAME = "gateway"
"""The gateway's name on networks with names."""
OWN_NAMES = frozenset({GATEWAY_NAME, "localhost"})
"""Names that no machine has on a network with a name."""


def _text(path: str) -> str:
    # pathlib would make the start of each card's supervisor a tenth longer.
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(file, _LARGEST_FILE).decode(errors="replace")
    finally:
        os.close(file)


class _Question:
    """One question, and the sockets to the servers that were asked."""

    def __init__(self, payload: bytes, origin: bytes, servers: list[str], now: float) -> None:
        self.payload = payload
        self.origin = origin
        self.servers = servers
        self.sockets: dict[int, tuple[socket.socket, str]] = {}
        self.next = now
        self.answer: bytes | None = None
        """An answer of a server that does not know, for want of a better one."""


_GATEWAY_NAME = b"".join(bytes([len(part)]) + part.encode() for part in [*HOST_NAME.split("."), ""])
_ADDRESS_OF_INTERNET = b"\0\1\0\1"


class Answer:
    """An answer, and the frame of its question."""

    def __init__(self, origin: bytes, payload: bytes) -> None:
        self.origin = origin
        self.payload = payload


class NameServers:
    """The open questions of one guest. Its sockets are for the caller's poll."""

    def __init__(
        self, servers: Callable[[], list[str]] = host_name_servers, port: int = _DNS
    ) -> None:
        self._servers = servers
        self._port = port
        self._open: dict[int, _Question] = {}
        self._questions: list[_Question] = []
        self._good = ""

    @property
    def waits(self) -> bool:
        """Whether there are open questions."""
        return bool(self._questions)

    def descriptors(self) -> list[int]:
        """The sockets at which answers come."""
        return list(self._open)

    def wait(self, now: float) -> float | None:
        """Seconds until `tick` has something to do; None for none."""
        return min((max(0.0, each.next - now) for each in self._questions), default=None)

    def ask(self, payload: bytes, origin: bytes, now: float) -> list[Answer]:
        """Ask for a guest; return an answer if there is one at once."""
        if len(payload) < _HEADER or payload[2] & _QR:
            return []
        if (known := _of_gateway(payload)) is not None:
            return [Answer(origin, known)]
        for former in self._questions:
            if former.payload == payload and former.origin == origin:
                return []
        if len(self._questions) >= _MOST:
            self._forget(self._questions[0])
        servers = self._servers()
        if self._good in servers:
            servers = [self._good, *(each for each in servers if each != self._good)]
        question = _Question(payload, origin, servers, now)
        self._questions.append(question)
        return self._ask_next(question, now)

    def receive(self, descriptor: int, now: float) -> list[Answer]:
        """Read what came at a socket."""
        question = self._open.get(descriptor)
        if question is None:
            return []
        link, server = question.sockets[descriptor]
        try:
            payload = link.recv(_LARGEST_ANSWER)
        except BlockingIOError:
            return []
        except OSError:
            # The server's host refuses the datagram.
            self._close(question, descriptor)
            return [] if question.sockets else self._ask_next(question, now)
        if not _answers(payload, question.payload):
            return []
        self._close(question, descriptor)
        if payload[3] & 0x0F in (_SERVFAIL, _REFUSED) and (question.servers or question.sockets):
            question.answer = payload
            return [] if question.sockets else self._ask_next(question, now)
        self._good = server
        return [self._answered(question, payload)]

    def tick(self, now: float) -> list[Answer]:
        """Ask the next servers for questions that have waited, or give them up."""
        found: list[Answer] = []
        for question in [each for each in self._questions if each.next <= now]:
            found += self._ask_next(question, now)
        return found

    def close(self) -> None:
        """Close all sockets."""
        for question in list(self._questions):
            self._forget(question)

    def _ask_next(self, question: _Question, now: float) -> list[Answer]:
        while question.servers:
            server = question.servers.pop(0)
            if self._send(question, server):
                question.next = now + (_PATIENCE if question.servers else _LAST_PATIENCE)
                return []
        if question.sockets and question.next > now:
            return []
        return [self._answered(question, question.answer or _failure(question.payload))]

    def _send(self, question: _Question, server: str) -> bool:
        try:
            numeric = socket.AI_NUMERICHOST
            family, kind, _, _, address = socket.getaddrinfo(
                server.encode("ascii"), self._port, type=socket.SOCK_DGRAM, flags=numeric
            )[0]
            link = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except (OSError, UnicodeError):
            return False
        try:
            # The kernel takes no answers of others then.
            link.connect(address)
            link.send(question.payload)
        except OSError:
            link.close()
            return False
        question.sockets[link.fileno()] = (link, server)
        self._open[link.fileno()] = question
        return True

    def _answered(self, question: _Question, payload: bytes) -> Answer:
        self._forget(question)
        return Answer(question.origin, _cut(payload))

    def _forget(self, question: _Question) -> None:
        for descriptor in list(question.sockets):
            self._close(question, descriptor)
        self._questions.remove(question)

    def _close(self, question: _Question, descriptor: int) -> None:
        del self._open[descriptor]
        link, _ = question.sockets.pop(descriptor)
        link.close()


def _answers(payload: bytes, question: bytes) -> bool:
    """Whether a datagram is an answer to a question, with the same number and question."""
    if len(payload) < _HEADER or payload[:2] != question[:2] or not payload[2] & _QR:
        return False
    end = _end_of_question(question)
    # A server that fails may leave the question out.
    return payload[4:6] == b"\0\0" or payload[_HEADER:end] == question[_HEADER:end]


def _end_of_question(payload: bytes) -> int:
    at = _HEADER
    while at < len(payload) and payload[at]:
        at += 1 + payload[at]
    return min(at + 5, len(payload))


def _of_gateway(question: bytes) -> bytes | None:
    """The answer to a question for the gateway's name; None for another question."""
    end = _end_of_question(question)
    name, kind = question[_HEADER : end - 4], question[end - 4 : end]
    if name.lower() != _GATEWAY_NAME:
        return None
    # It has an IPv4 address alone, which lasts a minute.
    found = kind == _ADDRESS_OF_INTERNET
    address = b"\xc0\x0c" + kind + struct.pack("!IH", 60, 4) + socket.inet_aton(GATEWAY)
    counts = struct.pack("!HHHH", 1, int(found), 0, 0)
    flags = bytes([question[2] & _RD | _QR, _RA])
    head = question[:2] + flags + counts + question[_HEADER:end]
    return head + (address if found else b"")


def _failure(question: bytes) -> bytes:
    """The answer that no server could be reached."""
    flags = bytes([question[2] & _RD | _QR, _RA | _SERVFAIL])
    asked = question[_HEADER : _end_of_question(question)]
    return question[:2] + flags + b"\0\1" + bytes(6) + asked


def _cut(payload: bytes) -> bytes:
    """An answer that fits into a frame: the guest knows that it is not whole."""
    if len(payload) <= LARGEST_REPLY:
        return payload
    end = _end_of_question(payload)
    flags = bytes([payload[2] | _TC, payload[3]])
    return payload[:2] + flags + payload[4:6] + bytes(6) + payload[_HEADER:end]
