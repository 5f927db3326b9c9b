"""The control socket: the part of QMP that a machine of ours serves (docs/qmp.md).

QEMU Machine Protocol (docs/interop/qmp-spec of QEMU): one JSON object a line, a greeting,
capabilities first, then commands and events. Several clients may be connected at once.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Mapping

from cerne.vmm.loop import Loop

_CHUNK = 64 * 1024
_LONGEST_LINE = 64 * 1024
_LONGEST_BACKLOG = 1 << 20
_VERSION: dict[str, object] = {
    "qemu": {"major": 0, "minor": 1, "micro": 0},
    "package": "cerne",
}

_DECODER = json.JSONDecoder()

Command = Callable[[], object]


class QmpServer:
    """Serves commands that take no arguments, on a listening socket."""

    def __init__(
        self, loop: Loop, listener: socket.socket, commands: Mapping[str, Command]
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._commands = dict(commands)
        self._commands["query-commands"] = self._query_commands
        self._commands["query-version"] = lambda: _VERSION
        self._clients: list[_Client] = []
        listener.setblocking(False)
        loop.watch(listener.fileno(), self._accept)

    def emit(self, event: str, data: Mapping[str, object] | None = None) -> None:
        """Tell all clients of an event."""
        seconds, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
        message = {
            "event": event,
            "data": dict(data or {}),
            "timestamp": {"seconds": seconds, "microseconds": microseconds},
        }
        for client in list(self._clients):
            if client.negotiated:
                client.send(message)

    def flush(self) -> None:
        """Give clients what waits for them, as far as they take it; before the end."""
        for client in list(self._clients):
            client.flush()

    def run(self, client: _Client, request: object) -> None:
        """Answer one request."""
        if not isinstance(request, dict) or not isinstance(request.get("execute"), str):
            client.fail(None, "a QMP request has an 'execute' member")
            return
        name, identity = request["execute"], request.get("id")
        if name == "qmp_capabilities":
            client.negotiated = True
            client.answer(identity, {})
        elif not client.negotiated:
            client.fail(identity, "expecting capabilities negotiation with 'qmp_capabilities'")
        elif name not in self._commands:
            words = f"the command {name} has not been found"
            client.fail(identity, words, kind="CommandNotFound")
        else:
            client.answer(identity, self._commands[name]())

    def forget(self, client: _Client) -> None:
        """A client has gone."""
        self._clients.remove(client)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.setblocking(False)
        client = _Client(self._loop, connection, self)
        self._clients.append(client)
        client.send({"QMP": {"version": _VERSION, "capabilities": []}})

    def _query_commands(self) -> object:
        return [{"name": name} for name in sorted([*self._commands, "qmp_capabilities"])]


class _Client:
    """One connection."""

    def __init__(self, loop: Loop, connection: socket.socket, server: QmpServer) -> None:
        self._loop = loop
        self._connection = connection
        self._server = server
        self._incoming = b""
        self._outgoing = bytearray()
        self._gone = False
        self.negotiated = False
        loop.watch(connection.fileno(), self._receive)

    def answer(self, identity: object, value: object) -> None:
        self.send({"return": value} | ({} if identity is None else {"id": identity}))

    def fail(self, identity: object, words: str, kind: str = "GenericError") -> None:
        error = {"error": {"class": kind, "desc": words}}
        self.send(error | ({} if identity is None else {"id": identity}))

    def send(self, message: Mapping[str, object]) -> None:
        self._outgoing += json.dumps(message).encode() + b"\r\n"
        if len(self._outgoing) > _LONGEST_BACKLOG:
            self._drop()
        else:
            self.flush()

    def flush(self) -> None:
        if self._gone:
            return
        try:
            while self._outgoing:
                del self._outgoing[: self._connection.send(self._outgoing)]
        except BlockingIOError:
            pass
        except OSError:
            self._drop()
            return
        writable = self.flush if self._outgoing else None
        self._loop.watch(self._connection.fileno(), self._receive, writable)

    def _receive(self) -> None:
        try:
            data = self._connection.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._incoming += data
        if not data or len(self._incoming) > _LONGEST_LINE:
            self._drop()
            return
        while not self._gone and self._take():
            pass

    def _take(self) -> bool:
        """Answer the first whole request of what has come; whether there was one.

        Requests need no line end between them: QEMU takes them so, and its own client sends them.
        """
        self._incoming = self._incoming.lstrip()
        text = self._incoming.decode(errors="replace")
        try:
            request, end = _DECODER.raw_decode(text)
        except (ValueError, RecursionError):
            line, separator, rest = self._incoming.partition(b"\n")
            if line and separator:
                self._incoming = rest
                self.fail(None, "invalid JSON")
            return bool(separator)
        self._incoming = self._incoming[len(text[:end].encode()) :]
        self._server.run(self, request)
        return True

    def _drop(self) -> None:
        if self._gone:
            return
        self._gone = True
        self._loop.watch(self._connection.fileno(), None)
        self._connection.close()
        self._server.forget(self)
