"""Commands about networks with names, and about the ports that machines publish."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from cerne.cli.complete import network_names
from cerne.cli.failure import Failures, tell
from cerne.cli.options import JsonOption, NameArgument, number
from cerne.cli.output import print_fields, print_json, print_table, printable

if TYPE_CHECKING:
    from cerne.client import Network
    from cerne.spec.ports import PublishedPort

app = typer.Typer(
    help="Networks: machines on one reach each other by name, and have addresses that stay.",
    no_args_is_help=True,
)
publish_app = typer.Typer(
    help="Published ports of machines: added and removed, also while the machine runs.",
    no_args_is_help=True,
)

NetworkArgument = Annotated[
    str, typer.Argument(metavar="NETWORK", help="The network.", autocompletion=network_names)
]
ForceOption = Annotated[
    bool, typer.Option("--force", "-f", help="Remove it without asking the guest.")
]
TimeoutOption = Annotated[
    str,
    typer.Option("--timeout", metavar="TIME", help="How long the guest may take to release it."),
]
PublishOption = Annotated[
    list[str] | None,
    typer.Option(
        "--publish", "-p", metavar="PORTS", help="[ADDRESS:]HOST:GUEST[/udp]; may be repeated."
    ),
]
AllowOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TARGET",
        help="What alone it may reach outside, such as 10.1.0.0/16:443 or deb.debian.org:80;"
        " may be repeated.",
    ),
]
EgressOption = Annotated[
    str | None,
    typer.Option(
        metavar="all|none",
        help="all or none: whether it may reach what is outside of the network.",
        show_default="all",
    ),
]
RateOption = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Bytes a second at most, as 10M or 10M/2M.")
]


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NETWORK", help="Its name.")],
    uplink: Annotated[
        str | None,
        typer.Option(
            metavar="UPLINK",
            help="What connects it to this host's networks: user, nat, bridge or none.",
            show_default="user",
        ),
    ] = None,
    ipv4: Annotated[
        str | None,
        typer.Option(
            metavar="SUBNET",
            help="Its IPv4 subnet, such as 10.20.0.0/24.",
            show_default="a free one",
        ),
    ] = None,
    ipv6: Annotated[
        str | None,
        typer.Option(
            metavar="SUBNET",
            help="Its IPv6 subnet, such as fd00:20::/64.",
            show_default="a free one",
        ),
    ] = None,
    parent: Annotated[
        str | None,
        typer.Option(metavar="INTERFACE", help="The bridge or interface for the uplink bridge."),
    ] = None,
    vlan: Annotated[
        int | None, typer.Option(metavar="NUMBER", help="The VLAN of the parent.", parser=number)
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Use the interface of this host's default route as parent."),
    ] = False,
) -> None:
    """Make a network, and print its name. It runs while a machine on it runs."""
    from cerne.client import connect
    from cerne.spec.named_network import network_spec

    said = {"uplink": uplink, "ipv4": ipv4, "ipv6": ipv6, "parent": parent, "vlan": vlan}
    asked = {word: value for word, value in said.items() if value is not None}
    network = connect().create_network(network_spec(name, **asked, force=force))
    print(network.name)
    for note in network.notes():
        tell(note)


@app.command("ls")
def list_networks(json: JsonOption = False) -> None:
    """List the networks."""
    from cerne.client import connect

    networks = connect().networks()
    if json:
        print_json([_summary(network) for network in networks])
        return
    rows = [
        (
            network.name,
            network.uplink,
            network.row.ipv4 or "",
            network.row.ipv6 or "",
            str(len({card.machine for card in network.cards()})),
            _state_word(network, None if network.runs else network.state()),
        )
        for network in networks
    ]
    print_table(("NAME", "UPLINK", "IPV4", "IPV6", "MACHINES", "STATE"), rows)


@app.command()
def inspect(network: NetworkArgument, json: JsonOption = False) -> None:
    """Show a network: the addresses of its machines, and what is wrong with it."""
    from cerne.client import connect

    host = connect()
    found = host.network(network)
    state, cards = found.state(), found.cards()
    published = {card.machine: host.get(card.machine).ports_of(card.number) for card in cards}
    if json:
        print_json(
            _summary(found)
            | {
                "cards": [
                    {
                        **asdict(card),
                        "ports": [asdict(port) for port in published[card.machine]],
                    }
                    for card in cards
                ],
                "processes": dict(state.processes) if state else {},
                "faults": list(state.faults) if state else [],
                "notes": list(found.notes(state)),
            }
        )
        return
    spec = found.spec
    fields = {
        "name": found.name,
        "id": found.row.id,
        "state": _state_words(found, state),
        "uplink": spec.uplink + (f" on {spec.parent}" if spec.parent else ""),
        "vlan": "" if spec.vlan is None else str(spec.vlan),
        "ipv4": found.row.ipv4 or "",
        "ipv6": found.row.ipv6 or "",
        "gateway": ", ".join(
            str(each) for each in (found.row.gateway4, found.row.gateway6) if each
        ),
        "processes": ", ".join(
            f"{name} {pid}" for name, pid in (state.processes if state else {}).items()
        ),
        "faults": "; ".join(state.faults) if state else "",
        "notes": "; ".join(found.notes(state)),
    }
    print_fields({field: value for field, value in fields.items() if value})
    if cards:
        rows = [
            (
                card.machine,
                str(card.number),
                card.mac,
                card.ipv4 or "",
                card.ipv6 or "",
                ",".join(port.short for port in published[card.machine]),
            )
            for card in cards
        ]
        print_table(("MACHINE", "CARD", "MAC", "IPV4", "IPV6", "PORTS"), rows)


@app.command()
def rm(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NETWORK...", help="Networks.", autocompletion=network_names),
    ],
) -> None:
    """Remove networks that no machine is on, and print the name of each."""
    from cerne.client import connect

    host, failures = connect(), Failures()
    for name in names:
        with failures.told():
            host.network(name).remove()
            print(name)
    failures.end()


@app.command("connect")
def connect_machine(
    network: NetworkArgument,
    name: NameArgument,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Its address on the network: an IPv4, an IPv6, or both with a comma between.",
            show_default="a free one",
        ),
    ] = None,
    mac: Annotated[
        str | None,
        typer.Option(metavar="MAC", help="Its hardware address.", show_default="made up"),
    ] = None,
    publish: PublishOption = None,
    allow: AllowOption = None,
    egress: EgressOption = None,
    rate: RateOption = None,
) -> None:
    """Add a card on a network to a machine, also while it runs, and print the card's number."""
    from cerne.client import connect
    from cerne.spec.network import check_network_name

    fields = _given(address=address, mac=mac, ports=publish, allow=allow, egress=egress, rate=rate)
    print(connect().get(name).attach_nic(check_network_name(network), **fields).number)


@app.command("disconnect")
def disconnect_machine(
    network: NetworkArgument,
    name: NameArgument,
    force: ForceOption = False,
    timeout: TimeoutOption = "10s",
) -> None:
    """Remove a machine's card on a network, and print the machine's name."""
    from cerne.client import connect
    from cerne.units import parse_duration

    limit = parse_duration(timeout)
    connect().get(name).disconnect(network, force=force, timeout=limit)
    print(name)


@app.command("set")
def set_card(
    network: NetworkArgument,
    name: NameArgument,
    allow: AllowOption = None,
    egress: EgressOption = None,
    rate: RateOption = None,
    host_access: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PORT",
            help="A port of this host's loopback that it reaches at the gateway; may be repeated.",
        ),
    ] = None,
) -> None:
    """Change what a machine's card on a network may do, at once; print the machine's name.

    --allow none, --rate none and --host-access none remove what is set.
    """
    from cerne.client import connect
    from cerne.errors import InputError

    fields = _given(allow=allow, egress=egress, rate=rate, host_access=host_access)
    if not fields:
        raise InputError(
            "no value to change was given",
            hint=f"give one: cerne network set {network} {name} --rate 10M",
        )
    if allow == ["none"]:
        fields["allow"] = ()
    if host_access == ["none"]:
        fields["host_access"] = ()
    if allow and egress is None:
        # With targets, nothing else is allowed; the other way round is an error of the model.
        fields["egress"] = "all"
    if egress == "none" and allow is None:
        fields["allow"] = ()
    machine = connect().get(name)
    machine.change_nic(machine.card_on(network), **fields)
    print(name)


@app.command()
def repair(network: NetworkArgument) -> None:
    """Make again what is missing of a network, and print what was done."""
    from cerne.client import connect

    for done in connect().network(network).repair() or [f"nothing of {network} was missing"]:
        print(printable(done))


@publish_app.command("add")
def add_port(
    name: NameArgument,
    ports: Annotated[
        list[str],
        typer.Argument(
            metavar="[ADDRESS:]HOST:GUEST[/udp]...", help="Ports, or ranges such as 80-82:80-82."
        ),
    ],
) -> None:
    """Publish more ports of a machine, and print all that it publishes."""
    from cerne.client import connect

    _print_ports(connect().get(name).publish(*ports))


@publish_app.command("rm")
def remove_port(
    name: NameArgument,
    ports: Annotated[
        list[str],
        typer.Argument(metavar="[ADDRESS:]HOST[/udp]...", help="Ports of this host, as listed."),
    ],
) -> None:
    """Publish ports of a machine no longer, and print those that are left."""
    from cerne.client import connect

    _print_ports(connect().get(name).unpublish(*ports))


@publish_app.command("ls")
def list_ports(name: NameArgument, json: JsonOption = False) -> None:
    """List the published ports of a machine."""
    from cerne.client import connect

    ports = connect().get(name).ports
    if json:
        print_json([asdict(port) for port in ports])
    else:
        _print_ports(ports)


def _print_ports(ports: tuple[PublishedPort, ...]) -> None:
    rows = [(str(port), str(port.guest_port)) for port in ports]
    print_table(("HOST", "GUEST"), rows)


def _state_word(network: Network, state: object) -> str:
    if network.runs:
        return "running"
    return "idle" if state is None else "ended"


def _state_words(network: Network, state: object) -> str:
    word = _state_word(network, state)
    more = {
        "ended": f": cerne network repair {network.name}",
        "idle": ": it starts with the first machine on it",
    }
    return word + more.get(word, "")


def _given(**values: object) -> dict[str, object]:
    return {word: value for word, value in values.items() if value is not None}


def _summary(network: Network) -> dict[str, object]:
    return {
        "id": network.row.id,
        "name": network.name,
        "uplink": network.uplink,
        "ipv4": network.row.ipv4,
        "ipv6": network.row.ipv6,
        "running": network.runs,
        "machines": sorted({card.machine for card in network.cards()}),
        "spec": network.spec.model_dump(mode="json"),
    }
