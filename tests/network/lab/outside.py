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
NAMES = {
    "outside.example": [ADDRESS4, ADDRESS6],
    "other.example": [OTHER4],
    "www.outside.example": [ADDRESS4],
}


class _Echo(socketserver.BaseRequestHandler):
    """Says who asks, and ends."""

    def handle(self) -> None:
        self.request.recv(1000)
        self.request.sendall(f"outside {self.client_address[0]}".encode())


class _EchoDatagram(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request[1].sendto(b"outside " + self.request[0], self.client_address)


class _Names(socketserver.BaseRequestHandler):
    def handle(self) -> None:
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
