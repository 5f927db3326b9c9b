"""How a command speaks to a network's holder: one request a connection, as JSON.

The caller connects to the socket ``control`` in the network's directory, writes a JSON object, and
closes its direction. The holder answers with a JSON object, and with a descriptor (SCM_RIGHTS,
unix(7)) where a card is added. It serves its own user alone (SO_PEERCRED).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from cerne import errors
from cerne.errors import CerneError, EngineError, NotAnsweringError

SOCKET = "control"
LARGEST = 1 << 24
"""Bytes of a message at most."""
_PATIENCE = 60.0
_CREDENTIALS = struct.Struct("3i")
_CHUNK = 1 << 16

Message = dict[str, object]


def ask(directory: Path, request: Mapping[str, object]) -> tuple[object, int | None]:
    """Send a request; return its result and the descriptor that came with it.

    Raises:
        CerneError: as the holder raised it.
        EngineError: the holder does not answer.
    """
    message, descriptors = _exchanged(directory, json.dumps(request).encode())
    descriptor = descriptors.pop() if descriptors else None
    for each in descriptors:
        os.close(each)
    try:
        return require_result(json.loads(message)), descriptor
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError("the network's process ended before it answered") from error


def require_result(answer: Mapping[str, object]) -> object:
    """The result of an answer; raises the error that it is."""
    if "error" in answer:
        raise _error(answer)
    return answer["result"]


def _exchanged(directory: Path, request: bytes) -> tuple[bytes, list[int]]:
    descriptors: list[int] = []
    try:
        with _connected(directory) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            answer = bytearray()
            while len(answer) <= LARGEST:
                data, got, _, _ = socket.recv_fds(connection, _CHUNK, 4)
                descriptors += got
                if not data:
                    break
                answer += data
            return bytes(answer), descriptors
    except TimeoutError as error:
        raise NotAnsweringError(
            f"the network's process did not answer within {_PATIENCE:.0f} s"
        ) from error
    except OSError as error:
        raise EngineError(
            f"the network's process does not answer: {error.strerror}",
            hint="cerne network repair NAME",
        ) from error


@contextlib.contextmanager
def _connected(directory: Path) -> Iterator[socket.socket]:
    # The path of a socket has at most 107 bytes; the descriptor makes every path short.
    place = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_PATIENCE)
            connection.connect(f"/proc/self/fd/{place}/{SOCKET}")
            yield connection
    finally:
        os.close(place)


def error_message(error: CerneError) -> Message:
    """An error as an answer."""
    return {"error": error.code, "message": error.message, "hint": error.hint}


def _error(answer: Mapping[str, object]) -> CerneError:
    kinds = {
        kind.code: kind
        for kind in (
            errors.InputError,
            errors.NotFoundError,
            errors.ConflictError,
            errors.HostError,
            errors.MissingProgramError,
            errors.CapacityError,
        )
    }
    kind = kinds.get(str(answer["error"]), EngineError)
    return kind(str(answer.get("message", "")), hint=str(answer.get("hint", "")))


def peer_user(connection: socket.socket) -> int:
    """The user of the process at the other end."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    user: int = _CREDENTIALS.unpack(data)[1]
    return user
