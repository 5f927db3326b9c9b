"""The network outside of a host: servers that answer at its addresses, with names of their own.

``python -m tests.network.lab.outside`` writes ``ready`` once it answers.
"""

from __future__ import annotations

import socket
import socketserver
import threading

from tests.network.lab import dns

ADDRESS4, ADDRESS6 = "198.51.100.1", "2001:db8:51::1"
OTHER4 = "198.51.100.3"
HOST4, HOST6 = "198.51.100.2", "2001:db8:51::2"
METADATA = "169.254.169.254"
PORT = 8000
SILENT = "silent"
"""A part of names for which the name server never answers."""
NAMES = {
    "outside.example": [ADDRESS4, ADDRESS6],
    "other.example": [OTHER4],
    "www.outside.example": [OTHER4],
}


class _Echo(socketserver.BaseRequestHandler):
    """Says who asks, and ends; or connects to a port, and says what that says."""

    def handle(self) -> None:
        word, *place = self.request.recv(1000).decode().split()
        if word in ("tcp", "udp"):
            self.request.sendall(_asked(word, *place))
            return
        self.request.sendall(f"outside {self.client_address[0]}".encode())


def _asked(protocol: str, host: str, port: str) -> bytes:
    """What a server says about its client."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, kind) as asking:
        asking.settimeout(5)
        asking.connect((host, int(port)))
        asking.sendall(b"who")
        return asking.recv(1000)


class _EchoDatagram(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request[1].sendto(b"outside " + self.request[0], self.client_address)


class _Names(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        if SILENT.encode() not in self.request[0]:
            self.request[1].sendto(dns.answer(self.request[0], NAMES), self.client_address)


class _Tcp6(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128


class _Udp6(socketserver.ThreadingUDPServer):
    address_family = socket.AF_INET6
    daemon_threads = True


def main() -> None:
    """Serve until it is killed."""
    servers = [_Tcp6(("::", PORT), _Echo), _Udp6(("::", PORT), _EchoDatagram)]
    servers.append(_Udp6(("::", 53), _Names))
    threads = [threading.Thread(target=server.serve_forever) for server in servers]
    for thread in threads:
        thread.start()
    print("ready", flush=True)


if __name__ == "__main__":
    main()
