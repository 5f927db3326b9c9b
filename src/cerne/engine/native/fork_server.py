"""The fork server of the engine `native`: a process with our VMM loaded, which forks machines.

A program that starts one machine starts a process for it. One that starts a second is likely to
start more: from then on it has a fork server (`cerne.vmm.fork_server`), which ends when the program
does.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import threading
from collections.abc import Sequence

from cerne.engine.detached import START
from cerne.errors import EngineError
from cerne.units import counted
from cerne.vmm.config import VmmConfig
from cerne.vmm.descriptors import DESCRIPTORS_AT_ONCE
from cerne.vmm.fork_server import LARGEST_REQUEST

PROGRAM = (*START, "fork-server")
"""The program of a fork server, which is told its socket."""

# Longer than any path of a machine's, which people see in the command lines of its children.
_TITLE = "cerne-fork-server".ljust(300, "-")
_LARGEST_ANSWER = 4096


class ForkServer:
    """One process that forks machines; any thread may ask it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [*PROGRAM, str(theirs.fileno()), _TITLE],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                cwd="/",
                env={"LC_ALL": "C"},
            )
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * LARGEST_REQUEST)
        self._requests = ours
        self._turn = threading.Lock()
        self.alive = True
        """Whether it can be asked."""
        self.owner = os.getpid()
        """Whose it is; what that forks is another program."""

    def start(self, config: VmmConfig, descriptors: Sequence[int]) -> int:
        """Fork a machine, whose configuration names places among the descriptors; its pid.

        Raises:
            EngineError: there is none.
        """
        request = json.dumps(config.to_json()).encode()
        if len(request) > LARGEST_REQUEST:
            raise EngineError(
                f"{config.name} is described by too much: {counted(len(request), 'byte')}"
            )
        with self._turn:
            try:
                answer = self._ask(request, descriptors)
            except OSError as error:
                # What it was sent is of no use to a later request.
                self.close()
                raise EngineError(f"no VMM could be forked: {error.strerror}") from error
        if "pid" not in answer:
            raise EngineError(str(answer["error"]))
        return int(str(answer["pid"]))

    def close(self) -> None:
        """Let it end; its machines run on."""
        self._requests.close()
        self.alive = False
        self._process.wait()

    def _ask(self, request: bytes, descriptors: Sequence[int]) -> dict[str, object]:
        for first in range(0, len(descriptors), DESCRIPTORS_AT_ONCE):
            several = descriptors[first : first + DESCRIPTORS_AT_ONCE]
            socket.send_fds(self._requests, [b" "], several)
        self._requests.send(request)
        answer = self._requests.recv(_LARGEST_ANSWER)
        if not answer:
            raise ConnectionResetError(errno.ECONNRESET, "it was killed")
        said: dict[str, object] = json.loads(answer)
        return said


_started = False
_fork_server: ForkServer | None = None
_change = threading.Lock()


def running_fork_server() -> ForkServer | None:
    """The fork server of this program, or None where it starts its first machine."""
    global _started, _fork_server
    with _change:
        if not _started:
            _started = True
            return None
        if _fork_server is None or not _fork_server.alive or _fork_server.owner != os.getpid():
            _fork_server = ForkServer()
        return _fork_server
