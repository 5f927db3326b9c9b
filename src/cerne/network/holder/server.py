"""The control socket of a holder: see `cerne.network.control`."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import traceback
from collections.abc import Callable

from cerne.errors import CerneError, EngineError
from cerne.network.control import LARGEST, SOCKET, Message, error_message, peer_user

_CHUNK = 1 << 16
_PATIENCE = 30.0

Handler = Callable[[Message], tuple[object, int | None]]
"""Answers a request, with a result and a descriptor to hand over."""


async def serve(handler: Handler, stopped: asyncio.Event, ready: Callable[[], None]) -> None:
    """Answer requests in the working directory's socket, until `stopped`."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(SOCKET)
        listener.listen(64)
        listener.setblocking(False)
        tasks: set[asyncio.Task[None]] = set()

        def accept() -> None:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            task = loop.create_task(_answer(connection, handler))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        loop.add_reader(listener, accept)
        ready()
        await stopped.wait()


async def _answer(connection: socket.socket, handler: Handler) -> None:
    with connection:
        connection.setblocking(False)
        if peer_user(connection) != os.geteuid():
            return
        try:
            request = await asyncio.wait_for(_received(connection), _PATIENCE)
            if request is None:
                return
            answer, descriptor = _handled(request, handler)
            try:
                await asyncio.wait_for(_send(connection, answer, descriptor), _PATIENCE)
            finally:
                if descriptor is not None:
                    os.close(descriptor)
        except OSError:
            # The caller has gone.
            return


async def _received(connection: socket.socket) -> bytes | None:
    loop = asyncio.get_running_loop()
    request = bytearray()
    while data := await loop.sock_recv(connection, _CHUNK):
        request += data
        if len(request) > LARGEST:
            return None
    return bytes(request)


async def _send(connection: socket.socket, answer: Message, descriptor: int | None) -> None:
    data = json.dumps(answer).encode()
    sent = 0
    if descriptor is not None:
        # The socket is new, so that its buffer is empty.
        sent = socket.send_fds(connection, [data], [descriptor])
    await asyncio.get_running_loop().sock_sendall(connection, data[sent:])


def _handled(request: bytes, handler: Handler) -> tuple[Message, int | None]:
    try:
        result, descriptor = handler(json.loads(request))
        return {"result": result}, descriptor
    except CerneError as error:
        return error_message(error), None
    except Exception as error:  # noqa: BLE001
        traceback.print_exc(file=sys.stderr)
        return error_message(EngineError(f"the network's process failed: {error}")), None
