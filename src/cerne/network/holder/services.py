"""dnsmasq of a network, and the relays of its questions to the host's name servers."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterable, Sequence
from functools import cache
from ipaddress import ip_address
from pathlib import Path

from cerne.errors import HostError, StorageError
from cerne.host.members import Members
from cerne.host.programs import require_program
from cerne.network import dnsmasq
from cerne.network.holder.children import Child
from cerne.network.holder.namespace import Inside
from cerne.network.holder.relay import Address, Relay, bound, relay
from cerne.network.names import host_name_servers
from cerne.network.plan import NetworkPlan
from cerne.network.rules import TABLE, Card
from cerne.spec.network import Uplink
from cerne.spec.ports import Protocols

_FIRST_PORT = 5301
_DNS = 53
_MOST_SERVERS = 6
_DIRECTORY = "dns"
_MOUNTED = "/mnt"
"""Where dnsmasq sees its files as another user, who may not enter the directories above."""
_OTHER_USER = 65534


class Services:
    """DHCP, router advertisements and names of a network."""

    def __init__(self, plan: NetworkPlan, inside: Inside, members: Members) -> None:
        self._plan = plan
        self._inside = inside
        self._place = plan.directory / _DIRECTORY
        self._as_other = os.geteuid() == 0
        self._servers: list[str] = []
        self._relays: list[Relay] = []
        self._written: dict[str, str] = {}
        self._dnsmasq = Child(
            "dnsmasq",
            members,
            lambda: self._command(dnsmasq.CONFIGURATION),
            inside=inside,
            directory=plan.directory,
        )
        self._closed = Child(
            "closed-dnsmasq",
            members,
            lambda: self._command(dnsmasq.CLOSED),
            inside=inside,
            directory=plan.directory,
        )
        """Serves the machines that may not reach everything; runs while there is one."""

    @property
    def pid(self) -> int | None:
        """The pid of dnsmasq, while it runs."""
        return self._dnsmasq.pid

    @property
    def said(self) -> str:
        """What dnsmasq wrote last."""
        return self._dnsmasq.said

    def start(self, cards: Sequence[Card]) -> None:
        """Start it with these machines.

        Raises:
            HostError: a program is missing, or does not start.
            StorageError: writing a file failed.
        """
        try:
            self._place.mkdir(mode=0o755, exist_ok=True)
            self._place.chmod(0o755)
            if self._as_other:
                os.chown(self._place, _OTHER_USER, _OTHER_USER)
        except OSError as error:
            raise StorageError(f"making {self._place} failed: {error.strerror}") from error
        self.ask_host()
        self._write_all(cards)
        self._dnsmasq.start()
        if _restricted(cards):
            self._closed.start()

    def update(self, cards: Sequence[Card]) -> None:
        """Have other machines."""
        changed = self._write_all(cards)
        hosts = bool(changed & {dnsmasq.HOSTS, dnsmasq.CARDS})
        if dnsmasq.CONFIGURATION in changed:
            self._dnsmasq.restart()
        elif hosts:
            self._dnsmasq.signal(signal.SIGHUP)
        if not _restricted(cards):
            self._closed.stop()
        elif dnsmasq.CLOSED in changed or self._closed.pid is None:
            self._closed.restart()
        elif hosts:
            self._closed.signal(signal.SIGHUP)

    def restart(self) -> None:
        """End it, and start it again."""
        for child in (self._dnsmasq, self._closed):
            if child.pid is not None:
                child.restart()

    def repair(self, cards: Sequence[Card]) -> None:
        """Start it if it does not run, with all files written again."""
        self._written.clear()
        self._write_all(cards)
        if self._dnsmasq.pid is None:
            self._dnsmasq.restart()
        if self._closed.pid is None and _restricted(cards):
            self._closed.restart()

    def lost(self, cards: Sequence[Card]) -> bool:
        """Whether a server does not run."""
        return self.pid is None or (self._closed.pid is None and _restricted(cards))

    def ask_host(self) -> bool:
        """Have the host's present name servers; return whether their number has changed."""
        servers = [] if self._plan.uplink is Uplink.NONE else _name_servers()
        before = len(self._relays)
        self._servers = servers
        for index in range(len(self._relays) // 2, len(servers)):
            self._add_relays(index)
        return len(self._relays) != before

    def _add_relays(self, index: int) -> None:
        address = Address("127.0.0.1", _FIRST_PORT + index)

        def target() -> Address | None:
            return Address(self._servers[index], _DNS) if index < len(self._servers) else None

        for protocol in Protocols:
            listener = bound(self._make_inside, protocol, address)
            self._relays.append(relay(listener, protocol, socket.socket, target))

    def _make_inside(self, family: socket.AddressFamily, kind: socket.SocketKind) -> socket.socket:
        return self._inside.call(socket.socket, family, kind)

    def _write_all(self, cards: Iterable[Card]) -> set[str]:
        """Write the files that have changed; return their names."""
        cards = list(cards)
        ports = [_FIRST_PORT + index for index in range(len(self._relays) // 2)]
        files = {
            dnsmasq.CONFIGURATION: dnsmasq.configuration(self._plan, self._seen_at(), ports, cards),
            dnsmasq.CLOSED: dnsmasq.closed_configuration(self._plan, self._seen_at(), ports, cards),
            dnsmasq.HOSTS: dnsmasq.hosts(self._plan, cards),
            dnsmasq.CARDS: dnsmasq.cards_file(cards),
        }
        changed = {name for name, text in files.items() if self._written.get(name) != text}
        for name in changed:
            _write(self._place / name, files[name])
        self._written = files
        return changed

    def _seen_at(self) -> str:
        return _MOUNTED if self._as_other else str(self._place)

    def _command(self, configuration: str) -> list[str]:
        file = f"{self._seen_at()}/{configuration}"
        program = str(require_program("dnsmasq"))
        command = [program, "--keep-in-foreground", f"--conf-file={file}"]
        if not self._as_other:
            return command
        setpriv, unshare = str(require_program("setpriv")), str(require_program("unshare"))
        kept = "-all,+net_admin,+net_raw,+net_bind_service"
        mount = f'mount --bind "$0" {_MOUNTED} && exec "$@"'
        return [
            *(unshare, "--mount", "--propagation=private", "--"),
            *("/bin/sh", "-c", mount, str(self._place)),
            *(setpriv, f"--reuid={_OTHER_USER}", f"--regid={_OTHER_USER}", "--clear-groups"),
            *(f"--inh-caps={kept}", f"--ambient-caps={kept}", f"--bounding-set={kept}"),
            *("--no-new-privs", "--pdeathsig=KILL", "--", *command),
        ]


@cache
def require_name_sets() -> None:
    """Refuse what needs a dnsmasq that adds the addresses of names to sets of nft.

    Raises:
        HostError: this one does not; it would not start.
    """
    option = f"--nftset=/name.example/4#inet#{TABLE}#trial"
    command = [str(require_program("dnsmasq")), "--test", "--conf-file=/dev/null", option]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        raise HostError(
            "the dnsmasq of this host does not know nftset, which allows targets by DNS name",
            hint="install dnsmasq 2.87 or later with nftset; or allow addresses instead of names",
        )


def _restricted(cards: Iterable[Card]) -> bool:
    """Whether a machine may not reach everything outside."""
    return any(card.plan.egress is not None for card in cards)


def _name_servers() -> list[str]:
    found = []
    for server in host_name_servers():
        with contextlib.suppress(ValueError):
            ip_address(server)
            found.append(server)
    return found[:_MOST_SERVERS]


def _write(path: Path, text: str) -> None:
    """Write a file anew beside it, and put it in its place."""
    new = path.with_name(f"{path.name}.new")
    try:
        new.write_text(text)
        new.chmod(0o644)
        new.rename(path)
    except OSError as error:
        raise StorageError(f"writing {path} failed: {error.strerror}") from error
