"""Machines on taps of a network namespace: data both ways, and what the guest may leave undone."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from tests.e2e.conftest import Cerne, Engine
from tests.taps import GUEST_ADDRESS, HOST_ADDRESS, Namespace

# Feature bits, as sysfs has them: CSUM, GUEST_CSUM, GUEST_TSO4, HOST_TSO4, MRG_RXBUF, CTRL_VQ.
_OFFLOADS = (0, 1, 7, 11, 15, 17)
_SET_UP = f"ip address add {GUEST_ADDRESS}/24 dev eth0; ip link set eth0 up"
_SENDS, _TAKES = 5000, 5001


class Peer:
    """In the namespace: sends the same bytes to whoever connects, and takes others back."""

    def __init__(self, namespace: Namespace, data: bytes) -> None:
        self._data = data
        self.digest = ""
        """Of what came last."""
        serves = {_SENDS: self._send, _TAKES: self._take}
        self._listeners = [
            namespace.within(partial(socket.create_server, (HOST_ADDRESS, port))) for port in serves
        ]
        for listener, serve in zip(self._listeners, serves.values(), strict=True):
            threading.Thread(target=self._serve, args=(listener, serve), daemon=True).start()

    def _serve(self, listener: socket.socket, serve: Callable[[socket.socket], None]) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    serve(connection)

    def _send(self, connection: socket.socket) -> None:
        connection.sendall(self._data)

    def _take(self, connection: socket.socket) -> None:
        digest = hashlib.sha256()
        while data := connection.recv(1 << 16):
            digest.update(data)
        self.digest = digest.hexdigest()
        connection.sendall(b"taken")

    def close(self) -> None:
        """Serve no more."""
        for listener in self._listeners:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()


@pytest.fixture
def within(cerne: Cerne, namespace: Namespace) -> Iterator[Cerne]:
    """The command line, in the namespace."""
    other = Cerne(cerne.home)
    other.prefix = namespace.prefix
    yield other
    # It ends before its namespace does.
    for name in cerne.names():
        cerne("rm", "--force", name)


def _exchange(cerne: Cerne, namespace: Namespace, size: int) -> None:
    """Send a guest as many bytes, get them back by another connection, and compare digests."""
    data = os.urandom(size)
    digest = hashlib.sha256(data).hexdigest()
    peer = Peer(namespace, data)
    try:
        fetch = f"nc {HOST_ADDRESS} {_SENDS} </dev/null >/tmp/data; sha256sum </tmp/data"
        assert cerne.ok("exec", "m", "--", "sh", "-c", fetch).split()[0] == digest
        back = f"nc {HOST_ADDRESS} {_TAKES} </tmp/data"
        assert cerne.ok("exec", "m", "--", "sh", "-c", back) == "taken"
        assert peer.digest == digest
    finally:
        peer.close()


def _features(cerne: Cerne) -> str:
    return cerne.ok("exec", "m", "cat", "/sys/class/net/eth0/device/features").strip()


@pytest.mark.slow_if_emulated
def test_a_machine_on_a_tap(
    within: Cerne, engine: Engine, namespace: Namespace, own_kernel: None
) -> None:
    namespace.ip("link", "set", "dev", "tap0", "mtu", "4000")
    options = (*engine.options, "--network", "tap:tap0")
    within.ok("run", "-d", "--name", "m", *options, "--timeout", "280s", "tiny", timeout=300)
    assert "another machine has the tap" in within.refused("run", "--rm", *options, "tiny", "true")
    assert "another machine has the tap" in within.refused("fork", "m")
    within.ok("exec", "m", "--", "sh", "-c", _SET_UP)
    features = _features(within)
    assert all(features[bit] == "1" for bit in _OFFLOADS)
    if engine.name == "native":
        assert within.ok("exec", "m", "cat", "/sys/class/net/eth0/mtu") == "4000\n"
    _exchange(within, namespace, (1 if engine.emulated else 4) << 20)
    # Its child goes on with a tap of its own, at the same address, which is changed first.
    namespace.ip("tuntap", "add", "dev", "tap1", "mode", "tap")
    namespace.ip("link", "set", "tap1", "up")
    within.ok("fork", "m", "--name", "child", "--network", "tap:tap1")
    addresses = [
        within.ok("exec", name, "cat", "/sys/class/net/eth0/address") for name in ("m", "child")
    ]
    assert len(set(addresses)) == 2
    assert within.machine("child")["spec"]["nics"][0]["network"] == "tap:tap1"  # type: ignore[index]
    assert within.ok("exec", "child", "hostname") == "child\n"
    assert within.ok("exec", "m", "ping", "-c", "1", HOST_ADDRESS)
    within.ok("suspend", "m")
    within.ok("wake", "m")
    _exchange(within, namespace, 1 << 18)
    # The child's cable leads to a network of its own, by the same addresses.
    namespace.ip("address", "del", f"{HOST_ADDRESS}/24", "dev", "tap0")
    namespace.ip("address", "add", f"{HOST_ADDRESS}/24", "dev", "tap1")
    assert within.ok("exec", "child", "ping", "-c", "1", HOST_ADDRESS)


@pytest.mark.slow_if_emulated
def test_a_machine_without_a_network_has_no_card(cerne: Cerne, engine: Engine) -> None:
    options = (*engine.options, "--network", "none")
    seen = cerne.ok("run", "--rm", *options, "tiny", "ls", "/sys/class/net")
    assert seen.split() == ["lo"]
    assert "publishes no ports" in cerne.refused("run", *options, "--publish", "1:1", "tiny")


def test_what_mends_it_is_named(cerne: Cerne) -> None:
    said = cerne.refused("run", "--rm", "--network", "tap:no-such", "tiny", "true")
    assert "there is no tap no-such" in said
    assert "sudo ip tuntap add dev no-such mode tap user $USER" in said
