"""One session with a guest's agent: a port claimed, connected and in step (``docs/agent.md``)."""

from __future__ import annotations

import socket


class Session:
    """A connection on which requests and answers go as whole frames."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def close(self) -> None:
        """Give the port back."""
        self._connection.close()
