"""Guests that were not written for us: what they need, we have."""

from __future__ import annotations

import contextlib
import http.server
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.guests.build import IPXE
from tests.guests.conftest import Built
from tests.guests.harness import Running, running
from tests.guests.screen import screen

from cerne.host.programs import find_program
from cerne.network.passt import passt_command
from cerne.network.user import ADDRESS, GATEWAY
from cerne.units import MIB

_MEMTEST = Path("/boot/memtest86+x64.bin")
_PATIENCE = 240


@pytest.mark.slow
def test_memtest_tests_the_memory(home: Path, emulated: bool) -> None:
    # It is a bzImage that is entered by the 32-bit protocol and goes to long mode by itself.
    if not _MEMTEST.exists():
        pytest.skip("memtest86+ is not installed: apt-get install memtest86+")
    with (
        running(
            home,
            _MEMTEST,
            memory=8 * MIB,
            command_line="console=ttyS0,115200 nobench nosm",
            emulated=emulated,
        ) as machine,
        socket.socket(socket.AF_UNIX) as console,
    ):
        console.connect(str(home / "console"))
        machine.wait_for(b"\x1b[2J")
        # Its menu: configuration, no temperature (which takes the x87), and back.
        console.sendall(b"160")
        _shown(machine, "Testing: 4MB - 8MB")
        # It has moved itself, to test where it was.
        shown = _shown(machine, "Testing: 0KB - 4MB")
    assert "Memtest86+" in shown
    assert "Memory  :    8MB" in shown
    assert "Errors: 0" in shown
    assert "1 Cores 1 Threads" in shown


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ipxe_fetches_a_file(home: Path, built: Built, emulated: bool) -> None:
    # Its own PCI and virtio-net drivers; on an emulated host it takes minutes to unpack itself.
    if not IPXE.exists():
        pytest.skip("iPXE is not installed: apt-get install ipxe")
    with (
        _file_server(b"hello, iPXE") as (port, asked),
        running(
            home,
            built("ipxe"),
            nics=1,
            memory=64 * MIB,
            command_line="dhcp && show net0/ip && "
            f"imgfetch http://{GATEWAY}:{port}/greeting && imgstat && echo done",
            emulated=emulated,
        ) as machine,
        _user_network(machine.links[0]),
    ):
        ended = machine.end(1700)
        said = machine.console().decode()
    assert ended == (True, "the guest shut down"), said + machine.errors()
    assert "Open Source Network Boot Firmware" in said
    assert f" = {ADDRESS}" in said
    assert asked == ["/greeting"]
    assert "greeting : 11 bytes" in said
    assert "\ndone" in said


@contextlib.contextmanager
def _file_server(content: bytes) -> Iterator[tuple[int, list[str]]]:
    """Serves this at any path, on a port of the host's; and the paths that were asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port, asked
        server.shutdown()


@contextlib.contextmanager
def _user_network(link: socket.socket) -> Iterator[None]:
    """Puts passt at the far end of a network card's cable."""
    passt = find_program("passt")
    if passt is None:
        pytest.skip("passt is not installed")
    command = passt_command(passt, str(link.fileno()), "0", "02:00:00:00:00:01")
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[link.fileno()])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _shown(machine: Running, words: str) -> str:
    """The screen, once that is on it."""
    deadline = time.monotonic() + _PATIENCE
    while words not in (shown := screen(machine.console())):
        assert machine.process.poll() is None, machine.errors()
        assert time.monotonic() < deadline, shown
        time.sleep(0.2)
    return shown
