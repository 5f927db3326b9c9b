"""The agent itself, run on this host: a socket pair takes the place of its port."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.waiting import PATIENCE

from cerne.errors import MissingProgramError
from cerne.guest import GuestAgent
from cerne.guest.build import agent_binary
from cerne.guest.session import Session


class Port:
    """Serves an agent on a Unix socket, one client after another, as a hypervisor does."""

    def __init__(self, program: Path, path: Path) -> None:
        self.path = path
        self._agent, far = socket.socketpair()
        with far:
            command: list[str | Path] = [program, "--socket-fd", str(far.fileno())]
            self.process = subprocess.Popen(command, pass_fds=[far.fileno()])
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._client: socket.socket | None = None
        threading.Thread(target=self._to_agent, daemon=True).start()
        threading.Thread(target=self._from_agent, daemon=True).start()

    def _to_agent(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._client = client
                self._carry(client)
                self._client = None
                client.close()

    def _carry(self, client: socket.socket) -> None:
        with contextlib.suppress(ConnectionError):
            while data := client.recv(65536):
                self._agent.sendall(data)

    def _from_agent(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._agent.recv(65536):
                client = self._client
                # What nobody listens to is lost, as on a port.
                if client is not None:
                    with contextlib.suppress(OSError):
                        client.sendall(data)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._agent.shutdown(socket.SHUT_RDWR)
        self._agent.close()
        self.process.wait(PATIENCE)


@pytest.fixture(scope="session")
def agent_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The agent, compiled; skips where there is no compiler."""
    try:
        return agent_binary(tmp_path_factory.mktemp("agent"))
    except MissingProgramError as error:
        pytest.skip(f"{error.message}: {error.hint}")


@pytest.fixture
def port(agent_program: Path) -> Iterator[Port]:
    """One port, served by an agent of its own."""
    directory = Path(tempfile.mkdtemp(prefix="cerne-", dir="/tmp"))
    served = Port(agent_program, directory / "agent0.sock")
    yield served
    served.close()
    shutil.rmtree(directory)


@pytest.fixture
def agent(port: Port) -> GuestAgent:
    """The client of that port."""
    return GuestAgent([port.path])


@pytest.fixture
def session_pair() -> Iterator[tuple[Session, socket.socket]]:
    """A session, and the other end of its connection: the test plays the guest."""
    near, far = socket.socketpair()
    with far, Session(near) as session:
        yield session, far
