"""Machines on networks with names, on QEMU: they meet, and others do not reach them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.addresses import own_address
from tests.e2e.conftest import Cerne, built_home
from tests.waiting import PATIENCE, eventually

from cerne.network.preflight import lacks
from cerne.spec.network import Uplink

_TINY = ("--engine", "qemu", "--memory", "128M", "tiny")
_SERVE = "mkdir -p /w; hostname > /w/index.html; httpd -p 80 -h /w"
_ECHO = r"""
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

int main(void)
{
	struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(53)}, from;
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	char word[100];

	if (bind(fd, (void *)&here, sizeof here) < 0 || daemon(0, 0) < 0)
		return 1;
	for (;;) {
		socklen_t size = sizeof from;
		ssize_t got = recvfrom(fd, word, sizeof word, 0, (void *)&from, &size);

		sendto(fd, word, got, 0, (void *)&from, size);
	}
}
"""
"""Answers each UDP packet at port 53 with the same; `tiny` has no such program."""


@pytest.fixture(scope="module")
def lan(qemu: Path) -> Iterator[Cerne]:
    """The machines web and db on the network lan, and other on the network dmz."""
    missing = lacks(Uplink.USER)
    if missing:
        pytest.skip(f"{missing[0].message}: {missing[0].hint}")
    with built_home() as cerne:
        try:
            _make_machines(cerne)
            yield cerne
        finally:
            # The networks end with their last machines.
            cerne("rm", "--force", *cerne.names())
            cerne("network", "ls")


def _make_machines(cerne: Cerne) -> None:
    cerne.ok("network", "create", "lan", "--ipv4", "10.211.7.0/24")
    cerne.ok("network", "create", "dmz")
    cerne.ok("run", "-d", "--name", "web", "--network", "lan", "--publish", "0:80", *_TINY)
    cerne.ok("exec", "web", "--", "sh", "-c", _SERVE)
    cerne.ok("run", "-d", "--name", "db", "--network", "lan:address=10.211.7.9", *_TINY)
    cerne.ok("run", "-d", "--name", "other", "--network", "dmz", *_TINY)


def _port(cerne: Cerne, guest: int) -> int:
    """The port of this host that leads to a port of web."""
    ports = json.loads(cerne.ok("publish", "ls", "web", "--json"))
    return next(int(port["host_port"]) for port in ports if port["guest_port"] == guest)


def _fetched(port: int) -> str:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as web:
        web.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return web.makefile("rb").read().decode().rpartition("\r\n")[2].strip()
    return ""


def _reaches(cerne: Cerne, name: str, address: str) -> bool:
    fetch = ["wget", "-q", "-O", "-", f"http://{address}/"]
    return cerne("exec", name, "--", "timeout", "10", *fetch).returncode == 0


def test_machines_reach_each_other_by_name(lan: Cerne) -> None:
    assert lan.ok("exec", "db", "--", "wget", "-q", "-O", "-", "http://web/").strip() == "web"
    for family in ("-4", "-6"):
        lan.ok("exec", "db", "--", "ping", family, "-c", "1", "-W", "10", "web")
        lan.ok("exec", "web", "--", "ping", family, "-c", "1", "-W", "10", "db.internal")


def test_each_address_is_what_is_listed(lan: Cerne) -> None:
    machines = {each["name"]: each["addresses"] for each in json.loads(lan.ok("ls", "--json"))}
    assert [machines[name][0]["ipv4"] for name in ("web", "db")] == ["10.211.7.2", "10.211.7.9"]
    for name, (card,) in machines.items():
        shown = lan.ok("exec", name, "--", "ip", "address", "show", "eth0")
        assert f"inet {card['ipv4']}/24 " in shown
        assert f"inet6 {card['ipv6']}/64 " in shown
        assert f"link/ether {card['mac']} " in shown
    assert "10.211.7.9" in lan.ok("ls")


def test_machines_on_two_networks_do_not_reach_each_other(lan: Cerne) -> None:
    assert _reaches(lan, "db", "10.211.7.2")
    assert not _reaches(lan, "other", "10.211.7.2")
    assert not _reaches(lan, "other", "web")


def test_published_ports_lead_to_the_machine(lan: Cerne, tmp_path: Path) -> None:
    eventually(lambda: _fetched(_port(lan, 80)) == "web")
    lan.ok("publish", "add", "web", "0:53/udp")
    program = tmp_path / "echo"
    compile_ = ["musl-gcc", "-static", "-x", "c", "-", "-o", str(program)]
    subprocess.run(compile_, input=_ECHO, text=True, check=True)
    lan.ok("cp", str(program), "web:/echo")
    lan.ok("exec", "web", "--", "/echo")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE)
        client.sendto(b"word\n", ("127.0.0.1", _port(lan, 53)))
        assert client.recv(100) == b"word\n"
    first = _port(lan, 80)
    lan.ok("publish", "rm", "web", str(first))
    assert _fetched(first) == ""
    lan.ok("publish", "add", "web", "0:80")
    eventually(lambda: _fetched(_port(lan, 80)) == "web")


@pytest.mark.slow
def test_what_another_machine_has_is_refused(lan: Cerne) -> None:
    for network, said in (
        ("lan:address=10.211.7.9", "db has the address 10.211.7.9"),
        ("wan", "there is no network named wan"),
    ):
        assert said in lan.refused("create", "--name", "more", "--network", network, *_TINY)
    port = ("--network", "lan", "--publish", f"{_port(lan, 80)}:80")
    lan.ok("create", "--name", "more", *port, *_TINY)
    assert "in use" in lan.refused("start", "more")
    lan.ok("rm", "more")
    assert "is in use by db, web" in lan.refused("network", "rm", "lan")
    assert "overlaps with" in lan.refused("network", "create", "more", "--ipv4", "10.211.0.0/16")


def test_a_renamed_machine_is_found_by_its_new_name_alone(lan: Cerne) -> None:
    lan.ok("rename", "db", "data")
    try:
        eventually(lambda: "10.211.7.9" in _resolved(lan, "web", "data"))
        eventually(lambda: "10.211.7.9" not in _resolved(lan, "web", "db"))
    finally:
        lan.ok("rename", "data", "db")
    eventually(lambda: "10.211.7.9" in _resolved(lan, "web", "db"))


def _resolved(cerne: Cerne, machine: str, name: str) -> str:
    """What the network's name server says to a machine about a name."""
    return cerne("exec", machine, "--", "nslookup", "-type=a", name, "10.211.7.1").stdout.decode()


@pytest.mark.slow
def test_a_rate_is_changed_while_the_machine_runs(lan: Cerne) -> None:
    lan.ok("exec", "web", "--", "dd", "if=/dev/zero", "of=/w/large", "bs=1M", "count=4")
    limited = _transfer(lan, "1M")
    free = _transfer(lan, "none")
    again = _transfer(lan, "1M")
    # 4 MiB at 1 MiB/s take 4 s, less what a full bucket gives at once.
    assert limited > 3
    assert again > 3
    assert free < limited


def _transfer(cerne: Cerne, rate: str) -> float:
    """Seconds that db takes for 4 MiB from web at a rate."""
    cerne.ok("network", "set", "lan", "db", "--rate", rate)
    fetch = ["wget", "-q", "-O", "/dev/null", "http://web/large"]
    said = cerne("exec", "db", "--", "sh", "-c", f"time {' '.join(fetch)}").stderr.decode()
    took = re.search(r"real\s+(\d+)m\s*([0-9.]+)s", said)
    assert took, said
    return 60 * int(took[1]) + float(took[2])


@pytest.mark.slow
def test_a_card_works_after_a_wake_and_after_a_restore(lan: Cerne) -> None:
    address = lan.machine("db")["addresses"]
    lan.ok("snapshot", "create", "db", "before")
    for words in (("suspend", "db"), ("wake", "db"), ("snapshot", "restore", "before")):
        lan.ok(*words)
        if words[0] != "suspend":
            assert lan.machine("db")["addresses"] == address
            lan.ok("exec", "db", "--", "ping", "-c", "1", "-W", "10", "web")
            lan.ok("exec", "web", "--", "ping", "-4", "-c", "1", "-W", "10", "db")
    lan.ok("snapshot", "rm", "before")


@pytest.mark.slow
def test_the_same_addresses_are_used_twice_on_one_host(lan: Cerne) -> None:
    with built_home() as other:
        other.ok("network", "create", "lan", "--ipv4", "10.211.7.0/24")
        other.ok("run", "-d", "--name", "db", "--network", "lan:address=10.211.7.9", *_TINY)
        try:
            assert not _reaches(other, "db", "10.211.7.2")
            assert _reaches(lan, "db", "10.211.7.2")
        finally:
            other.ok("rm", "--force", "db")


@pytest.mark.slow
def test_a_client_keeps_its_address_and_the_host_is_closed(lan: Cerne) -> None:
    """The client is this host, by an address of its own."""
    address = own_address()
    make = r"printf '#!/bin/sh\necho; echo $REMOTE_ADDR\n' >/w/cgi-bin/who; chmod +x /w/cgi-bin/who"
    lan.ok("exec", "web", "--", "sh", "-c", f"mkdir -p /w/cgi-bin; {make}")
    lan.ok("publish", "add", "web", f"{address}:0:80")
    ports = json.loads(lan.ok("publish", "ls", "web", "--json"))
    port = next(int(each["host_port"]) for each in ports if each["host_address"] == address)
    with socket.create_connection((address, port), PATIENCE) as web:
        web.sendall(b"GET /cgi-bin/who HTTP/1.0\r\n\r\n")
        assert address in web.makefile("rb").read().decode()
    assert not _reaches(lan, "web", f"{address}:{port}")
    lan.ok("publish", "rm", "web", f"{address}:{port}")


def test_a_fork_has_its_own_address(lan: Cerne) -> None:
    lan.ok("fork", "db", "--name", "copy")
    try:
        (card,) = json.loads(lan.ok("inspect", "--json", "copy"))["addresses"]
        shown = lan.ok("exec", "copy", "--", "ip", "address", "show", "eth0")
        assert f"inet {card['ipv4']}/24 " in shown
        assert "10.211.7.9/" not in shown
        assert f"inet6 {card['ipv6']}/64 " in shown
        lan.ok("exec", "copy", "--", "ping", "-c", "1", "-W", "10", "web")
        lan.ok("exec", "web", "--", "ping", "-4", "-c", "1", "-W", "10", "copy")
        lan.ok("exec", "db", "--", "ping", "-c", "1", "-W", "10", "web")
    finally:
        lan.ok("rm", "--force", "copy")


def test_a_card_is_connected_and_disconnected_while_the_machine_runs(lan: Cerne) -> None:
    lan.ok("network", "connect", "lan", "other", "--address", "10.211.7.77")
    assert "10.211.7.77" in lan.ok("exec", "other", "--", "ip", "address", "show", "eth1")
    lan.ok("exec", "other", "--", "ping", "-c", "1", "-W", "10", "10.211.7.2")
    lan.ok("network", "disconnect", "lan", "other")
    assert "eth1" not in lan.ok("exec", "other", "--", "ip", "link")
    assert not _reaches(lan, "other", "10.211.7.2")


def test_a_network_that_was_damaged_is_repaired(lan: Cerne) -> None:
    state = json.loads(lan.ok("network", "inspect", "lan", "--json"))
    assert not state["faults"]
    os.kill(state["processes"]["dnsmasq"], 9)
    lan.ok("network", "repair", "lan")
    assert not json.loads(lan.ok("network", "inspect", "lan", "--json"))["faults"]
    lan.ok("exec", "db", "--", "ping", "-c", "1", "-W", "10", "web")


@pytest.mark.slow
def test_addresses_stay_when_the_last_machine_has_ended(lan: Cerne) -> None:
    """The network ends with its last machine, and starts with the next one."""
    before = lan.machine("other")["addresses"]
    lan.ok("kill", "other")
    assert not json.loads(lan.ok("network", "inspect", "dmz", "--json"))["processes"]
    lan.ok("start", "other")
    assert lan.machine("other")["addresses"] == before
    assert json.loads(lan.ok("network", "inspect", "dmz", "--json"))["processes"]
