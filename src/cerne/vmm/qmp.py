"""The control socket: the part of QMP that a machine of ours serves (docs/qmp.md).

QEMU Machine Protocol (docs/interop/qmp-spec of QEMU): one JSON object a line, a greeting,
capabilities first, then commands and events. Several clients may be connected at once.
Descriptors that a client has sent (SCM_RIGHTS, unix(7)) belong to its next command.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, TypeVar

from cerne.devices.state import SavedState
from cerne.errors import CerneError, DamagedError, NotFoundError
from cerne.vmm.config import Descriptors
from cerne.vmm.descriptors import DESCRIPTORS_AT_ONCE, NO_DESCRIPTORS_LEFT
from cerne.vmm.listener import Listener
from cerne.vmm.loop import Loop

_CHUNK = 64 * 1024
_LONGEST_LINE = 1 << 20
_LONGEST_BACKLOG = 1 << 20
_VERSION: dict[str, object] = {
    "qemu": {"major": 0, "minor": 1, "micro": 0},
    "package": "cerne",
}

_CREDENTIALS = struct.Struct("=iII")
"""struct ucred: the pid, the user and the group."""

_DECODER = json.JSONDecoder()

_MOST_CLIENTS = 32
_MOST_DESCRIPTORS = 4096

_Taken = TypeVar("_Taken")


class Request(NamedTuple):
    """A command's arguments, and the descriptors that came with it, which are closed afterwards."""

    arguments: SavedState
    descriptors: tuple[int, ...]

    def descriptor(self, number: int) -> int:
        """The received descriptor of this number, counted from 0.

        Raises:
            DamagedError: fewer descriptors were sent.
        """
        if number >= len(self.descriptors):
            raise DamagedError(f"descriptor {number} was not sent")
        return self.descriptors[number]

    def take_over(self, parse: Callable[[SavedState, Descriptors], _Taken]) -> _Taken:
        """Parse the arguments with duplicated descriptors, which the caller owns.

        If `parse` raises an error, no descriptor stays duplicated.
        """
        parse(self.arguments, self.descriptor)
        return parse(self.arguments, lambda number: os.dup(self.descriptor(number)))


class Later(NamedTuple):
    """The answer of a long command: the result of a function in a separate thread.

    The loop goes on meanwhile. The client's next command waits for the answer.
    """

    finish: Callable[[], object]


class After(NamedTuple):
    """The answer of a command that continues on the loop's thread after something else.

    `wait` arranges that, and gives the function that it calls an error if it waited too long.
    The client's next command waits for the answer.
    """

    wait: Callable[[Callable[[CerneError | None], None]], None]
    action: Callable[[], object]


Command = Callable[[Request], object]

_NEGOTIATE = "qmp_capabilities"
_GENERIC, _COMMAND_NOT_FOUND = "GenericError", "CommandNotFound"
_DEVICE_NOT_FOUND = "DeviceNotFound"


class _RefusedError(Exception):
    """An error of one of QMP's classes, which answers a request."""

    def __init__(self, words: str, kind: str = _GENERIC) -> None:
        super().__init__(words)
        self.words = words
        self.kind = kind


class QmpServer:
    """Serves commands on a listening socket."""

    def __init__(
        self,
        loop: Loop,
        listener: socket.socket,
        commands: Mapping[str, Command],
        users: frozenset[int],
    ) -> None:
        """`users` are the ids of the users who may connect."""
        self._loop = loop
        self._users = users
        self._commands = dict(commands)
        self._commands["query-commands"] = self._query_commands
        self._commands["query-version"] = lambda _: _VERSION
        self._clients: list[_Client] = []
        self._listener = Listener(loop, listener, self._accept)

    def emit(self, event: str, data: Mapping[str, object] | None = None) -> None:
        """Send an event to all clients."""
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
        """Send waiting data to clients, as far as they take it; before the end."""
        for client in list(self._clients):
            client.flush()

    def close(self) -> None:
        """Close all connections and the listening socket; the loop must have ended."""
        for client in self._clients:
            client.close()
        self._listener.close()

    def run(self, client: _Client, request: object) -> None:
        """Answer one request."""
        identity = _identity(request)
        try:
            name, arguments = _command_of(request)
            command = self._capabilities if name == _NEGOTIATE else self._commands.get(name)
            received = self._request(client, name, command, arguments)
        except _RefusedError as refused:
            _say(client, identity, refused)
            return
        assert command is not None
        running = _Running(client, name, identity, received)
        answer = _outcome(name, partial(command, received))
        if not isinstance(answer, _RefusedError):
            client.negotiated = True
        self._answer(running, answer)

    def _answer(self, running: _Running, answer: object) -> None:
        """Give a command's answer, now or later."""
        client = running.client
        if isinstance(answer, After):
            client.busy = True

            def continue_(error: CerneError | None) -> None:
                self._answer(running, _outcome(running.name, partial(_or_fail, answer, error)))

            answer.wait(continue_)
            return
        # A forked child that leaves the command keeps them.
        for descriptor in running.request.descriptors:
            os.close(descriptor)
        if isinstance(answer, Later):
            client.busy = True
            finishing = partial(self._finish_later, running, answer)
            thread = threading.Thread(target=finishing, name=running.name)
            # Not from here: a start waits for the thread, and disks may rest until this returns.
            self._loop.ask(thread.start)
        elif client.busy:
            # Not from here, because many commands that need not wait would call one another.
            self._loop.ask(partial(self._tell, running, answer))
        else:
            _say(client, running.identity, answer)

    def _finish_later(self, running: _Running, later: Later) -> None:
        """In a thread: run the long function, and let the loop's thread answer."""
        answer = _outcome(running.name, later.finish)
        self._loop.ask(partial(self._tell, running, answer))

    def _tell(self, running: _Running, answer: object) -> None:
        running.client.busy = False
        _say(running.client, running.identity, answer)
        running.client.go_on()

    def _request(
        self, client: _Client, name: str, command: Command | None, arguments: Mapping[str, object]
    ) -> Request:
        if client.negotiated == (name == _NEGOTIATE):
            words = "are negotiated already" if client.negotiated else f"come first: {_NEGOTIATE}"
            raise _RefusedError(f"capabilities {words}", _COMMAND_NOT_FOUND)
        if command is None:
            raise _RefusedError(f"the command {name} has not been found", _COMMAND_NOT_FOUND)
        return Request(SavedState("the command", arguments), client.take_descriptors())

    def _capabilities(self, request: Request) -> object:
        # Only an empty list is allowed.
        if "enable" in request.arguments:
            request.arguments.sections("enable", 0)
        return {}

    def forget(self, client: _Client) -> None:
        """Forget a client that has gone."""
        self._clients.remove(client)

    def _accept(self, connection: socket.socket) -> None:
        if _user_of(connection) not in self._users or len(self._clients) >= _MOST_CLIENTS:
            connection.close()
            return
        client = _Client(self._loop, connection, self)
        self._clients.append(client)
        client.send({"QMP": {"version": _VERSION, "capabilities": []}})

    def _query_commands(self, _: Request) -> object:
        return [{"name": name} for name in sorted([*self._commands, _NEGOTIATE])]


class _Client:
    """One connection."""

    def __init__(self, loop: Loop, connection: socket.socket, server: QmpServer) -> None:
        self._loop = loop
        self._connection = connection
        self._server = server
        self._incoming = b""
        self._outgoing = bytearray()
        self._descriptors: list[int] = []
        self._some_lost = False
        self._gone = False
        self.negotiated = False
        self.busy = False
        """Whether one of its requests is in progress."""
        loop.watch(connection.fileno(), self._receive)

    def answer(self, identity: object, value: object) -> None:
        self.send({"return": value} | ({} if identity is None else {"id": identity}))

    def fail(self, identity: object, words: str, kind: str = _GENERIC) -> None:
        error = {"error": {"class": kind, "desc": words}}
        self.send(error | ({} if identity is None else {"id": identity}))

    def send(self, message: Mapping[str, object]) -> None:
        if self._gone:
            return
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

    def take_descriptors(self) -> tuple[int, ...]:
        """The descriptors that the client has sent since its last command.

        Raises:
            _RefusedError: this process had no room for all of them.
        """
        if self._some_lost:
            self._forget_descriptors()
            raise _RefusedError(NO_DESCRIPTORS_LEFT)
        taken, self._descriptors = tuple(self._descriptors), []
        return taken

    def _forget_descriptors(self) -> None:
        self._some_lost = False
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []

    def close(self) -> None:
        """Close the connection and its descriptors."""
        self._gone = True
        self._connection.close()
        self._forget_descriptors()

    def _receive(self) -> None:
        try:
            data, sent, flags, _ = socket.recv_fds(
                self._connection, _CHUNK, DESCRIPTORS_AT_ONCE, socket.MSG_CMSG_CLOEXEC
            )
            # Descriptors that did not fit are lost, and a command must not get others instead.
            self._some_lost = self._some_lost or bool(flags & socket.MSG_CTRUNC)
        except BlockingIOError:
            return
        except OSError:
            data, sent = b"", []
        self._descriptors += sent
        self._incoming += data
        too_much = len(self._incoming) > _LONGEST_LINE or len(self._descriptors) > _MOST_DESCRIPTORS
        if not data or too_much:
            self._drop()
            return
        self.go_on()

    def go_on(self) -> None:
        """Answer received requests, up to a long one."""
        while not self._gone and not self.busy and self._take():
            pass

    def _take(self) -> bool:
        """Answer the first whole request, and return whether there was one.

        Requests need no line end between them: QEMU accepts that, and its own client sends that.
        """
        self._incoming = self._incoming.lstrip()
        text = self._incoming.decode(errors="surrogateescape")
        try:
            request, end = _DECODER.raw_decode(text)
        except (ValueError, RecursionError):
            line, separator, rest = self._incoming.partition(b"\n")
            if line and separator:
                self._incoming = rest
                self.fail(None, "invalid JSON")
            return bool(separator)
        taken = text[:end].encode(errors="surrogateescape")
        self._incoming = self._incoming[len(taken) :]
        if _is_utf8(taken):
            self._server.run(self, request)
        else:
            self.fail(None, "invalid JSON")
        return True

    def _drop(self) -> None:
        if self._gone:
            return
        self._loop.watch(self._connection.fileno(), None)
        self.close()
        self._server.forget(self)


class _Running(NamedTuple):
    """A command that is not answered yet."""

    client: _Client
    name: str
    identity: object
    request: Request


def _or_fail(after: After, error: CerneError | None) -> object:
    if error is not None:
        raise error
    return after.action()


def _outcome(name: str, action: Callable[[], object]) -> object:
    """The answer of a command: its value, or an error."""
    try:
        return action()
    except NotFoundError as error:
        return _RefusedError(error.message, _DEVICE_NOT_FOUND)
    except CerneError as error:
        return _RefusedError(error.message)
    except OSError as error:
        # A descriptor of another kind, or too many open descriptors.
        return _RefusedError(f"{name} failed: {error.strerror or error}")


def _say(client: _Client, identity: object, answer: object) -> None:
    if isinstance(answer, _RefusedError):
        client.fail(identity, answer.words, answer.kind)
    else:
        client.answer(identity, answer)


def _command_of(request: object) -> tuple[str, Mapping[str, object]]:
    """A request's command and arguments; raises _RefusedError if it is not a request."""
    if not isinstance(request, dict):
        raise _RefusedError("a QMP request must be an object")
    for member in request:
        if member not in ("execute", "arguments", "id"):
            raise _RefusedError(f"a QMP request must not have the member {member!r}")
    name, arguments = request.get("execute"), request.get("arguments", {})
    if not isinstance(name, str):
        raise _RefusedError("a QMP request must have the member 'execute', a string")
    if not isinstance(arguments, dict):
        raise _RefusedError("the member 'arguments' of a QMP request must be an object")
    return name, arguments


def _identity(request: object) -> object:
    return request.get("id") if isinstance(request, dict) else None


def _user_of(connection: socket.socket) -> int:
    """The user who has connected (SO_PEERCRED, unix(7))."""
    said = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    user: int = _CREDENTIALS.unpack(said)[1]
    return user


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
