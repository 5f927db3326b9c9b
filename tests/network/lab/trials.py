"""What networks do, with machines on them: ``python -m tests.network.lab.trials TRIAL DIRECTORY``.

Each trial runs on a host of its own (`tests.network.lab.host`).
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import pytest
from tests.network.lab import dns, frames, outside
from tests.network.lab.host import UNABLE
from tests.network.lab.lab import (
    DOMAIN,
    GATEWAY4,
    GATEWAY6,
    SUBNET4,
    SUBNET6,
    Lab,
    Machine,
    card_plan,
    lab,
)
from tests.waiting import PATIENCE, eventually

from cerne import faults
from cerne.errors import CapacityError, ConflictError, HostError, InputError, NotFoundError
from cerne.host.cell import Cell
from cerne.host.cell_note import NOTE
from cerne.host.cgroup import pids_in
from cerne.host.members import Members
from cerne.host.process import ProcessIdentity
from cerne.network.addresses import pick_ipv4, pick_ipv6, require_unrouted
from cerne.network.firewall import forward_notes
from cerne.network.network import Network, start_network
from cerne.network.preflight import lacks
from cerne.spec.egress import parse_allowed
from cerne.spec.network import Uplink
from cerne.spec.ports import Protocols, PublishedPort
from cerne.spec.resources import NetworkResources

_SCRIPT = """#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add "$ip/$mask" dev "$interface"
ip route add default via "$router"
echo "$ip/$mask $router $dns $hostname $mtu $domain"
"""

_FLOOD = """
import os, socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect((sys.argv[1], 9))
if os.fork():
    os._exit(0)
for number in range(3):
    os.dup2(os.open(os.devnull, os.O_RDWR), number)
while True:
    try:
        s.send(bytes(1400))
    except OSError:
        pass
"""
_NEW_ADDRESS = "198.51.100.77"
_ENTER = """
import subprocess, sys
from cerne.network.holder.namespace import Inside, enter_user_namespace, privileged
anchor = int(sys.argv[1])
privileged() or enter_user_namespace(anchor)
run = Inside(anchor).call
print(run(subprocess.run, sys.argv[2:], check=True, capture_output=True, text=True).stdout)
"""
_ASK_OFTEN = """
import socket, struct, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect((sys.argv[1], 53))
for number in range(1000):
    label = b"%06d" % number + sys.argv[2].encode()
    name = bytes([len(label)]) + label + b"\\7example\\0"
    s.send(struct.pack("!6H", number, 0x100, 1, 0, 0, 0) + name + struct.pack("!2H", 1, 1))
"""
_BURST = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect((sys.argv[1], 9))
for _ in range(6000):
    try:
        s.send(sys.argv[2].encode() * (1300 // len(sys.argv[2])))
    except OSError:
        pass
"""


def addresses(lab: Lab) -> None:
    """A machine gets the planned addresses by DHCP, and a route by a router advertisement."""
    network = lab.network()
    machine = lab.connected(network, card_plan(5))
    said = _leased(lab, machine)
    assert f"{SUBNET4[5]}/24 {GATEWAY4} {GATEWAY4} m5 1500 {DOMAIN}" in said, said
    eventually(lambda: "default via fe80::1" in machine.require("ip", "-6", "route"))
    _inside(lab, "ip link del net0")
    # The network's process may have noticed it before.
    network.repair([machine.plan])
    _inside(lab, "ip link show net0")
    machine.require("ip", "addr", "flush", "dev", "eth0")
    assert str(SUBNET4[5]) in _leased(lab, machine)
    unknown = lab.connected(network, card_plan(6, ipv4=None, ipv6=None, name="unknown"))
    assert unknown.run("busybox", "udhcpc", "-i", "eth0", "-n", "-q", "-t", "2", "-T", "1")[0] != 0
    _keeps_its_lease(lab, machine, lab.machine(network, 7))


def _keeps_its_lease(lab: Lab, machine: Machine, bad: Machine) -> None:
    """A machine says nothing to the DHCP servers in the name of another one."""
    gateway, theirs = bad.gateway_mac(), machine.plan.ipv6
    assert theirs is not None
    bad.send_frame(frames.relayed(bad.plan, gateway, GATEWAY6, machine.plan))
    bad.send_frame(frames.declined(bad.plan, gateway, machine.plan))
    machine.require("ip", "addr", "flush", "dev", "eth0")
    assert str(SUBNET4[5]) in _leased(lab, machine)
    # The option with an address is 24 bytes long (RFC 8415, section 21.6).
    assert not bad.seen(bytes([0, 5, 0, 24]) + theirs.packed)


def _leased(lab: Lab, machine: Machine, *more: str) -> str:
    """What a machine gets by DHCP."""
    script = lab.directory / "udhcpc"
    script.write_text(_SCRIPT)
    script.chmod(0o755)
    options = ("-n", "-q", "-f", "-t", "20", "-T", "1", "-O", "hostname", "-O", "mtu")
    return machine.require("busybox", "udhcpc", "-i", "eth0", *options, "-s", str(script), *more)


def names(lab: Lab) -> None:
    """Machines have names, and other names are asked of the host's servers."""
    network = lab.network()
    first = lab.machine(network, 5, name="web")
    lab.machine(network, 6, name="db")
    for name in ("db", f"db.{DOMAIN}"):
        eventually(partial(_resolves, first, name, str(SUBNET4[6])))
    assert first.resolve("db", dns.AAAA) == [str(SUBNET6[6])]
    assert first.resolve("db", server=GATEWAY6) == [str(SUBNET4[6])]
    assert first.resolve("6.7.64.10.in-addr.arpa", dns.PTR) == [f"db.{DOMAIN}"]
    reverse = SUBNET6[6].reverse_pointer
    assert first.resolve(reverse, dns.PTR) == [f"db.{DOMAIN}"]
    assert first.resolve("outside.example") == [outside.ADDRESS4]
    network.remove_card(card_plan(6).mac)
    eventually(lambda: first.resolve("db") == [])
    # A machine that asks without end leaves others their answers.
    lab.machine(network, 7).require(sys.executable, "-c", _ASK_OFTEN, str(GATEWAY4), outside.SILENT)
    assert first.resolve("other.example") == [outside.OTHER4]


def _resolves(machine: Machine, name: str, address: str) -> bool:
    return machine.resolve(name) == [address]


def neighbours(lab: Lab) -> None:
    """Machines of a network reach each other."""
    network = lab.network(lab.plan(Uplink.NONE))
    first, second = lab.machine(network, 5), lab.machine(network, 6)
    second.serve(80)
    for address in (SUBNET4[6], SUBNET6[6]):
        first.require("busybox", "ping", "-c", "1", "-W", "10", str(address))
        assert first.connect(address, 80, "hello") == "machine hello"
        assert first.send(address, 80, "hello") == "machine hello"
    assert not first.connect(outside.ADDRESS4, outside.PORT)


def outside_user(lab: Lab) -> None:
    """By pasta a machine reaches what is outside, and nothing that is closed."""
    _reaches_outside(lab, Uplink.USER)


def outside_nat(lab: Lab) -> None:
    """By the host's kernel too; the host's own rules stay."""
    _nft("add table ip docker")
    _nft("add chain ip docker own { type filter hook forward priority 0 ; policy accept ; }")
    network = _reaches_outside(lab, Uplink.NAT)
    assert network.state().interfaces[0] in _sh("ip -br link")
    assert "table inet cerne" in _nft("list tables")
    _nft("flush ruleset")
    _nft(
        "add chain ip docker own { type filter hook forward priority 0 ; policy drop ; }",
        "add table ip docker",
    )
    eventually(lambda: not network.state().faults)
    assert "table inet cerne" in _nft("list tables")
    assert any("drops what it does not know" in note for note in network.state().notes)
    interface = network.state().interfaces[0]
    network.stop()
    assert "cerne" not in _nft("list tables")
    assert interface not in _sh("ip -br link")


def _reaches_outside(lab: Lab, uplink: Uplink) -> Network:
    network = lab.network(lab.plan(uplink))
    machine = lab.machine(network, 5, host_ports=(_serve_host(),))
    eventually(lambda: not network.state().faults)
    source = outside.HOST4
    assert machine.connect(outside.ADDRESS4, outside.PORT).endswith(f"outside ::ffff:{source}")
    assert machine.send(outside.ADDRESS4, outside.PORT, "x") == "outside x"
    closed = "IPv6 does not leave" in " ".join(network.state().notes)
    if not closed:
        assert machine.connect(outside.ADDRESS6, outside.PORT) == f"outside {outside.HOST6}"
        assert machine.send(outside.ADDRESS6, outside.PORT, "x") == "outside x"
    assert not machine.connect(outside.METADATA, outside.PORT)
    # The host's own addresses are closed, also new ones.
    own = _serve_host("0.0.0.0")
    assert not machine.connect(outside.HOST4, own)
    _sh(f"ip addr add {_NEW_ADDRESS}/32 dev lo") if not os.geteuid() else None
    eventually(lambda: not machine.connect(_NEW_ADDRESS, own))
    if not closed:
        _forms_are_closed(lab, machine)
    # The host's loopback is closed but for the port that was asked for.
    open_port, closed_port = machine.plan.host_ports[0], _serve_host()
    assert machine.connect(GATEWAY4, open_port) == "host"
    assert machine.connect(GATEWAY6, open_port) == "host"
    other = lab.machine(network, 6)
    for address in (GATEWAY4, GATEWAY6):
        assert not machine.connect(address, closed_port)
        assert not other.connect(address, open_port)
    return network


def _forms_are_closed(lab: Lab, machine: Machine) -> None:
    """No other form of the host's loopback leads there."""
    router = _inside(lab, "ip -br link show net0").split()[2]
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        listener.settimeout(0.5)
        for form in ("::ffff:127.0.0.1", "::127.0.0.1", "::", "64:ff9b::127.0.0.1"):
            address, port = IPv6Address(form), listener.getsockname()[1]
            machine.send_frame(frames.begins(machine.plan, router, address, port))
            with pytest.raises(TimeoutError):
                print(form, listener.accept())


def published(lab: Lab) -> None:
    """Ports lead to machines, by TCP and UDP, and change while connections last."""
    network = lab.network()
    ports = [_published(0, 80), _published(0, 80, Protocols.UDP), _published(0, 80, host="::1")]
    machine = lab.machine(network, 5, ports=tuple(ports))
    machine.serve(80)
    tcp, udp, six = network.cards()[0].ports
    assert _says(tcp, b"a") == b"machine a"
    assert _says(udp, b"b") == b"machine b"
    assert _says(six, b"c") == b"machine c"
    with socket.create_connection((tcp.host_address, tcp.host_port)) as lasting:
        kept = replace(machine.plan, ports=(tcp, _published(0, 81)))
        state = network.set_card(replace(kept, ports=(ports[0], *kept.ports[1:])))
        assert state.ports[0] == tcp
        lasting.sendall(b"still")
        assert lasting.recv(100) == b"machine still"
    with pytest.raises(OSError):
        _says(six, b"c")
    with pytest.raises(ConflictError, match="in use"):
        network.add_card(card_plan(6, ports=(_published(tcp.host_port, 80),)))
    assert [card.plan.name for card in network.cards()] == ["m5"]


def clients(lab: Lab) -> None:
    """A machine sees the addresses of its clients, where it can answer them."""
    for uplink in (Uplink.USER, Uplink.NAT) if not os.geteuid() else (Uplink.USER,):
        network = lab.network(lab.plan(uplink, uplink.value))
        hosts = (outside.HOST4, outside.HOST6)
        ports = tuple(
            _published(0, 80, protocol, host)
            for host in (*hosts, "127.0.0.1")
            for protocol in Protocols
        )
        machine = lab.machine(network, 5, ports=ports, keeps_clients=True, egress=())
        plain = lab.machine(network, 6, ports=(_published(0, 80, host=outside.HOST4),))
        for each in (machine, plain):
            each.serve(80)
        state = {card.plan.name: card.ports for card in network.cards()}
        for port in state["m5"]:
            local = port.host_address == "127.0.0.1"
            said = _says(port, b"who") if local else _from_outside(port)
            six = ":" in port.host_address
            client = outside.ADDRESS6 if six else f"::ffff:{outside.ADDRESS4}"
            expected = f"::ffff:{GATEWAY4}" if local else client
            assert said.decode() == f"machine {expected}", (port, said)
        assert _from_outside(state["m6"][0]).decode() == f"machine ::ffff:{GATEWAY4}"
        # It does not reach them by itself.
        assert not machine.connect(outside.ADDRESS4, outside.PORT)
        network.stop()


def _from_outside(port: PublishedPort) -> bytes:
    """What a published port says to a client outside, about this client."""
    with socket.create_connection((outside.ADDRESS4, outside.PORT), PATIENCE) as asking:
        asking.sendall(f"{port.protocol} {port.host_address} {port.host_port}".encode())
        return asking.recv(1000)


def firewall(lab: Lab) -> None:
    """What a firewall of others drops is said, and passes by the rule that is said."""
    network = lab.network(lab.plan(Uplink.NAT))
    machine = lab.machine(network, 5)
    for table, family, chain, user in (
        ("filter", "ip", "FORWARD", "DOCKER-USER"),
        ("own", "inet", "fw", ""),
    ):
        _nft(f"add table {family} {table}")
        if user:
            _nft(f"add chain {family} {table} {user}")
        hook = "{ type filter hook forward priority 0 ; policy drop ; }"
        _nft(f"add chain {family} {table} {chain} {hook}")
        if user:
            _nft(f"add rule {family} {table} {chain} jump {user}")
        assert not machine.connect(outside.ADDRESS4, outside.PORT)
        (note,) = forward_notes()
        assert f"{family} {table} {chain}" in note
        assert note in network.state().notes
        if user:
            assert f"iptables -I {user} -i cerne-+ -j ACCEPT" in note
            _nft(f'insert rule {family} {table} {user} iifname "cerne-*" accept')
            back = "ct state established,related accept"
            _nft(f'insert rule {family} {table} {user} oifname "cerne-*" {back}')
        else:
            advice = note.partition(": ")[2].rpartition("; or")[0].replace("sudo ", "")
            subprocess.run(["sh", "-c", advice], check=True)
        assert machine.connect(outside.ADDRESS4, outside.PORT)
        assert not forward_notes()
        _nft(f"delete table {family} {table}")


def crowd(lab: Lab) -> None:
    """A thousand connections at once pass through a published port."""
    network = lab.network()
    machine = lab.machine(network, 5, ports=(_published(0, 80),))
    machine.serve(80)
    port = network.cards()[0].ports[0]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with contextlib.ExitStack() as opened:
        made = []
        for number in range(1000):
            each = socket.create_connection((port.host_address, port.host_port), PATIENCE)
            made.append(opened.enter_context(each))
            each.sendall(b"%d" % number)
        for number, each in enumerate(made):
            assert each.recv(100) == b"machine %d" % number
    assert soft


def egress(lab: Lab) -> None:
    """A machine reaches what its list allows: subnets, ports and names; a change acts at once."""
    network = lab.network()
    machine = lab.machine(network, 5, egress=())
    here, other = (outside.ADDRESS4, outside.PORT), (outside.OTHER4, outside.PORT)
    eventually(lambda: not network.state().faults)
    assert not machine.connect(*here)
    # A question for a name carries data out too.
    lab.machine(network, 6)
    eventually(lambda: machine.resolve("m6") == [str(SUBNET4[6])])
    assert machine.resolve("outside.example") == []
    machine.require("ip", "addr", "add", "fe80::5/64", "dev", "eth0", "nodad")
    chosen = partial(machine.resolve, server="fe80::1%eth0", source="fe80::5%eth0")
    eventually(lambda: chosen("m6") == [str(SUBNET4[6])])
    assert chosen("outside.example") == []

    def allow(*texts: str) -> None:
        network.set_card(replace(machine.plan, egress=tuple(map(parse_allowed, texts))))

    allow(f"{outside.ADDRESS4}:{outside.PORT}")
    assert machine.connect(*here)
    assert not machine.connect(*other)
    allow(f"{outside.ADDRESS4}:1-{outside.PORT - 1}")
    assert not machine.connect(*here)
    allow(f"{outside.ADDRESS4}/32/udp")
    assert not machine.connect(*here)
    assert machine.send(*here) == "outside x"
    allow(f"other.example:{outside.PORT}")
    assert not machine.connect(*other)
    eventually(lambda: machine.resolve("other.example") == [outside.OTHER4])
    assert machine.connect(*other)
    assert machine.resolve("outside.example") == []
    assert not machine.connect(*here)
    network.set_card(replace(machine.plan, egress=None))
    assert machine.connect(*here)
    eventually(lambda: machine.resolve("outside.example") == [outside.ADDRESS4])
    # What was asked before does not keep the way open.
    way = partial(machine.resolve, "outside.example", source=str(SUBNET4[5]), port=5555)
    assert way() == [outside.ADDRESS4]
    network.set_card(machine.plan)
    assert way() == ["no answer"]


def allowed_names(lab: Lab) -> None:
    """Each card reaches the names of its own list, and those below them, also if others do too."""
    network = lab.network()
    eventually(lambda: not network.state().faults)
    here, other = (outside.ADDRESS4, outside.PORT), (outside.OTHER4, outside.PORT)
    names = ("outside.example", "outside.example", "www.outside.example")
    first, second, third = (
        lab.machine(network, number, egress=(parse_allowed(name),))
        for number, name in enumerate(names, 5)
    )
    eventually(lambda: third.resolve("www.outside.example") == [outside.OTHER4])
    for machine in (first, second, third):
        assert machine.connect(*other)
        assert not machine.connect(*here)
    assert first.resolve("outside.example") == [outside.ADDRESS4]
    assert first.connect(*here)
    assert second.connect(*here)
    assert not third.connect(*here)
    # The addresses of a name are not those of the name in its place.
    network.set_card(replace(second.plan, egress=(parse_allowed("more.example"),)))
    assert not second.connect(*here)
    # Without its rules, the network asks again for the addresses that it knew.
    _inside(lab, "nft flush ruleset")
    eventually(lambda: "table bridge cerne" in _inside(lab, "nft list tables"))
    eventually(lambda: first.resolve("outside.example") == [outside.ADDRESS4])
    eventually(lambda: first.connect(*here))


def own_names(lab: Lab) -> None:
    """A machine has the name that it was given, and none that it asks for."""
    network = lab.network(lab.plan(Uplink.NONE))
    first = lab.machine(network, 5)
    lab.machine(network, 6, name="gateway")
    odd = lab.connected(network, card_plan(7, name="odd_name"))
    eventually(lambda: first.resolve("m5") == [str(SUBNET4[5])])
    for name in ("m5", "gateway", "localhost", "free"):
        assert str(SUBNET4[7]) in _leased(lab, odd, "-x", f"hostname:{name}", "-F", name)
        odd.require("ip", "addr", "flush", "dev", "eth0")
    assert first.resolve("m5") == [str(SUBNET4[5])]
    assert first.resolve("free") == []
    assert first.resolve(f"free.{DOMAIN}") == []
    assert first.resolve("gateway") == [str(GATEWAY4)]
    with pytest.raises(ConflictError, match="has the name"):
        network.add_card(card_plan(8, name="M5"))


def spoofing(lab: Lab) -> None:
    """Frames with addresses of others are dropped, and those of routers and DHCP servers."""
    network = lab.network(lab.plan(Uplink.NONE))
    bad, good = lab.machine(network, 5), lab.machine(network, 6)
    lab.machine(network, 7)
    spoofed = frames.spoofed(bad.plan, good.plan, card_plan(7))
    allowed = frames.allowed(bad.plan, good.plan)
    arrived = _arrived(bad, good, spoofed | allowed)
    assert arrived == set(allowed), arrived ^ set(allowed)


def _arrived(bad: Machine, good: Machine, sent: dict[str, bytes]) -> set[str]:
    """The names of those frames of one machine that another one gets."""
    for name, frame in sent.items():
        bad.send_frame(frame + f"<{name}>".encode().ljust(64))
    bad.send_frame(frames.honest(bad.plan, good.plan) + b"honest-last".ljust(64))
    eventually(lambda: good.seen(b"honest-last"))
    return {name for name in sent if good.seen(f"<{name}>".encode())}


def flood(lab: Lab) -> None:
    """A machine that sends without end does not keep a quiet neighbour from its traffic."""
    network = lab.network(lab.plan(Uplink.NONE))
    noisy, quiet, server = (lab.machine(network, number) for number in (5, 6, 7))
    server.serve(80)
    noisy.require(sys.executable, "-c", _FLOOD, str(SUBNET4[7]))
    for _ in range(3):
        assert quiet.connect(SUBNET4[7], 80, "hello") == "machine hello"
    assert quiet.resolve("m7") == [str(SUBNET4[7])]


def rates(lab: Lab) -> None:
    """A card's rates are limits for what it receives and sends, and change at once."""
    network = lab.network(lab.plan(Uplink.NONE))
    slow = NetworkResources(receive=100_000, send=100_000)
    first, second = lab.machine(network, 5, rate=slow), lab.machine(network, 6)
    burst = [sys.executable, "-c", _BURST]
    first.require(*burst, str(SUBNET4[6]), "out")
    second.require(*burst, str(SUBNET4[5]), "in")
    # 8 MB were sent at once, and a full bucket is 256 KiB at most.
    assert second.seen(b"out") < 2000
    assert first.seen(b"in") < 2000
    assert "limit rate over 100000 bytes" in _inside(lab, "nft list table bridge cerne")
    assert "tbf" in _inside(lab, "tc qdisc")
    network.set_card(replace(first.plan, rate=NetworkResources()))
    assert "limit rate" not in _inside(lab, "nft list table bridge cerne")
    assert "tbf" not in _inside(lab, "tc qdisc")


def apart(lab: Lab) -> None:
    """Two networks with the same addresses are two worlds."""
    first, second = lab.network(lab.plan(name="first")), lab.network(lab.plan(name="second"))
    here, there = lab.machine(first, 5), lab.machine(second, 6)
    there.serve(80)
    same = lab.machine(second, 5)
    assert same.connect(SUBNET4[6], 80, "x") == "machine x"
    assert not here.connect(SUBNET4[6], 80)
    assert not here.connect(SUBNET6[6], 80)


def repair(lab: Lab) -> None:
    """What is killed or removed is made again, and machines keep their cards."""
    network = lab.network()
    first, second = lab.machine(network, 5, ports=(_published(0, 80),)), lab.machine(network, 6)
    first.serve(80)
    eventually(lambda: not network.state().faults)
    for name in ("dnsmasq", "pasta"):
        before = network.state().processes[name]
        os.kill(before, signal.SIGKILL)
        eventually(partial(_is_another, network, name, before))
    _inside(lab, "nft flush ruleset")
    eventually(lambda: "table bridge cerne" in _inside(lab, "nft list tables"))
    _inside(lab, "ip link del net0")
    plans = [first.plan, second.plan]
    assert "made the bridge again" in network.repair(plans)
    assert not network.state().faults
    _works(network, first, second)
    # The holder is killed, and all that it started ends with it, but for the namespace.
    holder, ports = network.record.holder, network.cards()[0].ports
    holder.send(signal.SIGKILL)
    eventually(lambda: not _left(lab, "dnsmasq", "pasta"))
    assert not network.alive()
    assert network.state().faults == ("the network's process does not run",)
    assert "started the network's process again" in network.repair(plans)
    assert network.record.holder != holder
    assert all(card.connected for card in network.cards())
    # A port that Cerne chose keeps its number.
    assert network.cards()[0].ports == ports
    _works(network, first, second)
    network.stop()
    assert not _left(lab, "holder", "anchor", "dnsmasq", "pasta")
    assert not (lab.directory / "lab").exists()
    network.stop()


def _is_another(network: Network, name: str, former: int) -> bool:
    return network.state().processes.get(name, former) != former


def reboot(lab: Lab) -> None:
    """A network whose processes are all gone is made again; machines that start get new taps."""
    plan = lab.plan()
    network = lab.network(plan)
    first = lab.machine(network, 5, ports=(_published(0, 80),))
    for process in _left(lab, "holder", "anchor", "dnsmasq", "pasta"):
        process.send(signal.SIGKILL)
    eventually(lambda: not _left(lab, "holder", "anchor", "dnsmasq", "pasta"))
    first.end()
    network.repair([first.plan])
    assert [card.connected for card in network.cards()] == [False]
    again = lab.connected(network, first.plan)
    again.configure()
    again.serve(80)
    second = lab.machine(network, 6)
    _works(network, again, second)


def _works(network: Network, first: Machine, second: Machine) -> None:
    assert second.connect(first.plan.ipv4, 80, "x") == "machine x"
    eventually(lambda: second.resolve("m5") == [str(first.plan.ipv4)])
    eventually(lambda: second.connect(outside.ADDRESS4, outside.PORT))
    assert _says(network.cards()[0].ports[0], b"x") == b"machine x"


def again(lab: Lab) -> None:
    """A start finds the network that runs; a start that fails leaves nothing."""
    plan = lab.plan(Uplink.NONE)
    first = lab.network(plan)
    assert start_network(plan) == first.record
    groups = Cell(plan.directory / NOTE).groups
    assert all(first.record.holder.pid in pids_in([group]) for group in groups)
    machine = lab.machine(first, 5)
    with pytest.raises(ConflictError, match="has the MAC"):
        first.add_card(machine.plan)
    with pytest.raises(ConflictError, match="has the address"):
        first.add_card(replace(machine.plan, mac="02:00:00:00:00:99"))
    with pytest.raises(ConflictError, match="has the name"):
        first.add_card(card_plan(6, name="m5"))
    with pytest.raises(NotFoundError):
        first.set_card(card_plan(6))
    machine.end()
    eventually(lambda: not first.cards()[0].connected)
    again = lab.connected(first, machine.plan)
    again.configure()
    again.require("busybox", "ping", "-c", "1", "-W", "10", str(GATEWAY4))
    first.stop()
    assert not any(group.exists() for group in groups)
    bad = lab.plan(Uplink.BRIDGE, "bad", parent="no-such", ipv4=None, ipv6=None)
    with pytest.raises((HostError, InputError)):
        start_network(bad)
    assert not bad.directory.exists()


def killed(lab: Lab) -> None:
    """A command that is killed while it starts a network leaves what the next one takes over."""
    plan = lab.plan(Uplink.NONE)
    for step in ("network planned", "network started"):
        child = os.fork()
        if child == 0:
            faults.hook = partial(_end_at, step)
            start_network(plan)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        network = lab.network(plan)
        assert len(_left(lab, "holder")) == 1
        assert len(_left(lab, "anchor")) == 1
        lab.machine(network, 5).require("busybox", "ping", "-c", "1", "-W", "10", str(GATEWAY4))
        network.stop()
        assert not _left(lab, "holder", "anchor", "dnsmasq")


def _end_at(wanted: str, step: str) -> None:
    if step == wanted:
        os.kill(os.getpid(), signal.SIGKILL)


def without_ipv6(lab: Lab) -> None:
    """A host without IPv6 has networks too."""
    _sh("mount -t tmpfs none /proc/sys/net/ipv6")
    for uplink in (Uplink.USER, Uplink.NAT):
        network = lab.network(lab.plan(uplink, uplink.value))
        machine = lab.machine(network, 5)
        eventually(partial(_is_whole, network))
        assert any("has no IPv6" in note for note in network.state().notes)
        assert machine.connect(outside.ADDRESS4, outside.PORT)
        assert machine.resolve("m5") == [str(SUBNET4[5])]


def _is_whole(network: Network) -> bool:
    return not network.state().faults


def bridge(lab: Lab) -> None:
    """Machines are a part of a network of the host, by a bridge or by an interface."""
    _sh("ip link add lan0 type bridge")
    _sh("ip link set lan0 up")
    _sh("ip addr add 10.99.0.1/24 dev lan0")
    _sh("ip link add phys0 type veth peer name lan1")
    _sh("ip link set lan1 master lan0 up")
    for name in ("lan0", "phys0"):
        plan = lab.plan(
            Uplink.BRIDGE, name, parent=name, ipv4=None, ipv6=None, gateway4=None, gateway6=None
        )
        network = lab.network(plan)
        machine = lab.connected(network, card_plan(5, ipv4=None, ipv6=None))
        machine.require("ip", "addr", "add", "10.99.0.5/24", "dev", "eth0")
        machine.require("busybox", "ping", "-c", "1", "-W", "10", "10.99.0.1")
        with pytest.raises(InputError, match="publishes ports"):
            network.set_card(replace(machine.plan, ports=(_published(0, 80),)))
        other = lab.connected(network, card_plan(6, ipv4=None, ipv6=None))
        sender, to = card_plan(5), card_plan(6)
        spoofed = frames.spoofed(sender, to, card_plan(7))
        machine.plan, other.plan = sender, to
        arrived = _arrived(machine, other, spoofed | frames.allowed(sender, to))
        dropped = frames.unaddressed(sender, to, card_plan(7))
        expected = (set(spoofed) - dropped) | set(frames.allowed(sender, to))
        assert arrived == expected, arrived ^ expected
        machine.end()
        other.end()
        network.stop()
    plan = lab.plan(Uplink.BRIDGE, "bad", parent="up0", ipv4=None, ipv6=None)
    with pytest.raises(ConflictError, match="default route") as refused:
        start_network(plan)
    assert "--force" in refused.value.hint


def vlan(lab: Lab) -> None:
    """Machines are a part of a VLAN of the host's network, and get their addresses there."""
    for parent in ("lan0", "trunk0"):
        _require_vlans()
        _sh("ip link add trunk0 type veth peer name far1")
        if parent == "lan0":
            _sh("ip link add lan0 type bridge")
            _sh("ip link set lan0 up")
            _sh("ip link set trunk0 master lan0")
        _sh("ip link set trunk0 up")
        with _lan(lab):
            plan = lab.plan(
                Uplink.BRIDGE,
                parent,
                parent=parent,
                vlan=10,
                ipv4=None,
                ipv6=None,
                gateway4=None,
                gateway6=None,
            )
            network = lab.network(plan)
            machine = lab.connected(network, card_plan(5, ipv4=None, ipv6=None))
            assert "10.99.10." in _leased(lab, machine)
            machine.require("busybox", "ping", "-c", "1", "-W", "10", "10.99.10.1")
            # The network without a tag is another one.
            machine.require("ip", "addr", "add", "10.99.0.5/24", "dev", "eth0")
            assert machine.run("busybox", "ping", "-c", "1", "-W", "1", "10.99.0.1")[0]
            assert not network.state().faults
            machine.end()
            network.stop()
        # It goes with the namespace of its other end, if that is quicker.
        subprocess.run(["ip", "link", "del", "trunk0"], capture_output=True, check=False)


def _require_vlans() -> None:
    """End the trial on a kernel without VLANs."""
    _sh("ip link add trial0 type veth peer name trial1")
    added = "ip link add link trial0 name trial2 type vlan id 10"
    missing = subprocess.run(added.split(), capture_output=True, check=False).returncode
    _sh("ip link del trial0")
    if missing:
        print("this host's kernel has no VLANs (8021q)")
        sys.exit(UNABLE)


@contextlib.contextmanager
def _lan(lab: Lab) -> Iterator[None]:
    """A network behind far1, with a VLAN in which a server gives addresses."""
    served = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--no-ping"]
    served += ["--interface=far1.10", "--bind-interfaces", "--user=root"]
    served += [f"--dhcp-leasefile={lab.directory}/lan.leases"]
    served += ["--dhcp-range=10.99.10.50,10.99.10.99,255.255.255.0"]
    commands = (
        "read go",
        "ip link set far1 up",
        "ip addr add 10.99.0.1/24 dev far1",
        "ip link add link far1 name far1.10 type vlan id 10",
        "ip addr add 10.99.10.1/24 dev far1.10",
        "ip link set far1.10 up",
        'exec "$@"',
    )
    script = f"echo made; set -e; {'; '.join(commands)}"
    process = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", script, "sh", *served],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "made\n"
        _sh(f"ip link set far1 netns {process.pid}")
        process.stdin.write("go\n")
        process.stdin.flush()
        yield
    finally:
        process.kill()
        process.wait()


def picked(lab: Lab) -> None:
    """Subnets are free ones."""
    assert not pick_ipv4([]).overlaps(IPv4Network("198.51.100.0/24"))
    pool = [IPv4Network("198.51.100.0/23")]
    assert pick_ipv4([], pool) == IPv4Network("198.51.101.0/24")
    with pytest.raises(CapacityError):
        pick_ipv4([IPv4Network("198.51.101.0/25")], pool)
    assert pick_ipv6([]).subnet_of(IPv6Network("fd00::/8"))
    with pytest.raises(ConflictError, match="up0"):
        require_unrouted(IPv4Network("198.51.100.128/25"))
    require_unrouted(SUBNET4)
    assert lacks(Uplink.USER) == ()
    assert lab.directory.exists()


def _sh(command: str) -> str:
    return subprocess.run(command.split(), check=True, capture_output=True, text=True).stdout


def _nft(*commands: str) -> str:
    return "".join(
        subprocess.run(["nft", each], check=True, capture_output=True, text=True).stdout
        for each in reversed(commands)
    )


def _inside(lab: Lab, command: str) -> str:
    """Run a command in the namespace of the network, as its user."""
    anchor = Members(lab.directory / "lab").alive("anchor")[0].pid
    entering = [sys.executable, "-c", _ENTER, str(anchor), *command.split()]
    return subprocess.run(entering, check=True, capture_output=True, text=True).stdout


def _left(lab: Lab, *roles: str) -> list[ProcessIdentity]:
    members = Members(lab.directory / "lab")
    return [each for role in roles for each in members.alive(role)]


def _published(
    number: int, guest: int, protocol: Protocols = Protocols.TCP, host: str = "127.0.0.1"
) -> PublishedPort:
    return PublishedPort(host, number, guest, protocol)


def _says(port: PublishedPort, said: bytes) -> bytes:
    """What a published port answers."""
    family = socket.AF_INET6 if ":" in port.host_address else socket.AF_INET
    kind = socket.SOCK_STREAM if port.protocol is Protocols.TCP else socket.SOCK_DGRAM
    with socket.socket(family, kind) as asking:
        asking.settimeout(PATIENCE)
        asking.connect((port.host_address, port.host_port))
        asking.sendall(said)
        return asking.recv(1000)


def _serve_host(address: str = "127.0.0.1") -> int:
    """A port of the host, usually of its loopback, that says ``host``."""
    listener = socket.create_server((address, 0))

    def serve() -> None:
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"host")

    threading.Thread(target=serve, daemon=True).start()
    number: int = listener.getsockname()[1]
    return number


def main() -> None:
    """Run a trial."""
    with lab(Path(sys.argv[2])) as made:
        globals()[sys.argv[1]](made)


if __name__ == "__main__":
    main()
