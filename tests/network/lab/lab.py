"""Networks and machines for one trial, which end with it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

from tests.network.lab import dns

from cerne.network.network import Network, attach_network, start_network
from cerne.network.plan import CardPlan, NetworkPlan
from cerne.spec.network import Uplink

SUBNET4, SUBNET6 = IPv4Network("10.64.7.0/24"), IPv6Network("fd00:64:7::/64")
GATEWAY4, GATEWAY6 = SUBNET4[1], SUBNET6[1]
DOMAIN = "internal"

_CONNECT = """
import socket, sys
host, port, said = sys.argv[1], int(sys.argv[2]), sys.argv[3]
with socket.create_connection((host, port), 5) as s:
    s.sendall(said.encode() or b"x")
    print(s.recv(1000).decode())
"""
_SEND = """
import socket, sys
host, port, said = sys.argv[1], int(sys.argv[2]), sys.argv[3]
with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.settimeout(5)
    s.connect((host, port))
    s.send(said.encode())
    print(s.recv(1000).decode())
"""
_SERVE = """
import os, socket, sys, threading
port = int(sys.argv[1])
def said(data, sender):
    return b"machine " + (sender[0].encode() if data == b"who" else data)
def tcp(listener):
    def answer(s):
        with s:
            while data := s.recv(1000):
                s.sendall(said(data, s.getpeername()))
    while True:
        s, _ = listener.accept()
        threading.Thread(target=answer, args=(s,), daemon=True).start()
six = socket.AF_INET6
listener = socket.create_server(("::", port), family=six, dualstack_ipv6=True, backlog=2000)
udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
udp.bind(("::", port))
if os.fork():
    os._exit(0)
os.setsid()
for number in range(3):
    os.dup2(os.open(os.devnull, os.O_RDWR), number)
threading.Thread(target=tcp, args=(listener,), daemon=True).start()
while True:
    data, sender = udp.recvfrom(1000)
    udp.sendto(said(data, sender), sender)
"""


class Machine:
    """A machine on a network (`tests.network.lab.machine`)."""

    def __init__(self, descriptor: int, plan: CardPlan, subnet6: IPv6Network = SUBNET6) -> None:
        self.plan = plan
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.network.lab.machine", str(descriptor), plan.mac],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[descriptor],
        )
        os.close(descriptor)
        assert self._output.readline() == "ready\n"

    def configure(self, gateway4: IPv4Address = GATEWAY4, gateway6: IPv6Address = GATEWAY6) -> None:
        """Give it its addresses and routes, without DHCP."""
        self.require("ip", "addr", "add", f"{self.plan.ipv4}/24", "dev", "eth0")
        self.require("ip", "addr", "add", f"{self.plan.ipv6}/64", "dev", "eth0", "nodad")
        self.require("ip", "route", "add", "default", "via", str(gateway4))
        self.require("ip", "-6", "route", "replace", "default", "via", str(gateway6))

    def run(self, *command: str) -> tuple[int, str]:
        """Run a command in it: its status and output."""
        status, output = self._ask("run", *command)
        return status, output

    def require(self, *command: str) -> str:
        """Run a command that must succeed, and return its output."""
        status, output = self.run(*command)
        assert status == 0, f"{self.plan.name}: {command}: {output}"
        return output

    def connect(self, host: object, port: int, said: str = "") -> str:
        """What a TCP server says; empty if it is not reached."""
        status, output = self.run(sys.executable, "-c", _CONNECT, str(host), str(port), said)
        return output.strip() if status == 0 else ""

    def send(self, host: object, port: int, said: str = "x") -> str:
        """What a UDP server says; empty if it does not answer."""
        status, output = self.run(sys.executable, "-c", _SEND, str(host), str(port), said)
        return output.strip() if status == 0 else ""

    def serve(self, port: int) -> None:
        """Answer TCP and UDP at a port."""
        self.require(sys.executable, "-c", _SERVE, str(port))

    def resolve(
        self,
        name: str,
        kind: int = dns.A,
        server: object = GATEWAY4,
        source: str = "",
        port: int = 0,
    ) -> list[str]:
        """The answers of the network's name server."""
        question = (str(server), name, str(kind), source, str(port))
        status, output = self.run(sys.executable, "-m", "tests.network.lab.dns", *question)
        return output.split() if status == 0 else ["no answer"]

    def gateway_mac(self) -> str:
        """The MAC of the network's own address."""
        self.require("busybox", "ping", "-c", "1", "-W", "10", str(GATEWAY4))
        (found,) = json.loads(self.require("ip", "-j", "neigh", "show", str(GATEWAY4)))
        return str(found["lladdr"])

    def send_frame(self, frame: bytes) -> None:
        """Send a frame as the guest is: with any content."""
        self._ask("send", frame.hex())

    def seen(self, content: bytes) -> int:
        """The number of frames that came with this content."""
        count = self._ask("seen", content.hex())
        assert isinstance(count, int)
        return count

    def end(self) -> None:
        """End it as a killed VMM ends."""
        self._process.kill()
        self._process.wait()

    @property
    def _output(self) -> Any:
        assert self._process.stdout is not None
        return self._process.stdout

    def _ask(self, *request: str) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._output.readline())


class Lab:
    """The networks and machines of a trial."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._machines: list[Machine] = []
        self._networks: list[Network] = []

    def plan(self, uplink: Uplink = Uplink.USER, name: str = "lab", **other: Any) -> NetworkPlan:
        """A network's plan; all have the same subnets."""
        fields: dict[str, Any] = {
            "ipv4": SUBNET4,
            "gateway4": GATEWAY4,
            "ipv6": SUBNET6,
            "gateway6": GATEWAY6,
        }
        directory = self.directory / name
        # Networks of other trials have other control groups.
        identity = f"{name}0000-{os.getpid()}"
        return NetworkPlan(identity, name, uplink, directory, **{**fields, **other})

    def network(self, plan: NetworkPlan | None = None) -> Network:
        """A network that runs."""
        plan = self.plan() if plan is None else plan
        network = attach_network(plan, start_network(plan))
        self._networks.append(network)
        return network

    def machine(self, network: Network, number: int = 5, **card: Any) -> Machine:
        """A machine that has its addresses."""
        made = self.connected(network, card_plan(number, **card))
        made.configure()
        return made

    def connected(self, network: Network, plan: CardPlan) -> Machine:
        """A machine without addresses."""
        made = Machine(network.add_card(plan), plan)
        self._machines.append(made)
        return made

    def end(self) -> None:
        """End all."""
        for machine in self._machines:
            machine.end()
        for network in self._networks:
            network.stop()


@contextlib.contextmanager
def lab(directory: Path) -> Iterator[Lab]:
    """A lab, which is removed at the end."""
    made = Lab(directory)
    try:
        yield made
    finally:
        made.end()


def card_plan(number: int, **card: Any) -> CardPlan:
    """The plan of the machine ``m<number>``."""
    fields: dict[str, Any] = {
        "mac": f"02:00:00:00:00:{number:02x}",
        "machine": f"id-{number}",
        "name": f"m{number}",
        "ipv4": SUBNET4[number],
        "ipv6": SUBNET6[number],
    }
    return CardPlan(**{**fields, **card})
