"""Commands that show machines, their logs, their events and what they use of the host."""

from __future__ import annotations

import contextlib
import sys
import time
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from cerne.cli.failure import Failures
from cerne.cli.options import JsonOption, NameArgument, NamesArgument, count
from cerne.cli.output import (
    age,
    json_text,
    print_fields,
    print_json,
    print_table,
    printable,
    short_digest,
)
from cerne.errors import CerneError, NotFoundError
from cerne.units import format_size

if TYPE_CHECKING:
    from cerne.client import CardRow, Event, Machine, ProcessWalls, Record
    from cerne.spec.machine import MachineSpec
    from cerne.spec.ports import PublishedPort

FollowOption = Annotated[
    bool, typer.Option("--follow", "-f", help="Wait for more and print it as it comes.")
]

_COLOURS = {
    "running": "green",
    "paused": "yellow",
    "failed": "red",
    "starting": "yellow",
    "suspended": "yellow",
}
_DEGRADED = " (degraded)"
_POLL = 0.2
_LOG_BLOCK = 1 << 20


def ls(
    json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the names.")] = False,
) -> None:
    """List the machines."""
    from cerne.client import connect

    failures = Failures()
    host = connect()
    machines = present_machines(host.machines(), failures)
    if quiet and not json:
        print("".join(f"{record.name}\n" for _, record in machines), end="")
        failures.end()
        return
    rows = [(machine, record, _ports(machine, failures)) for machine, record in machines]
    addresses = host.addresses()
    if json:
        print_json(
            [
                _summary(*each) | {"addresses": _cards(addresses.get(each[1].id, ()))}
                for each in rows
            ]
        )
    else:
        headings = ["NAME", "STATE", "IMAGE", "CPUS", "MEMORY", "ENGINE", "CREATED"]
        cells = [_row(*each) for each in rows]
        # The column is there once a machine has an address of its own.
        if addresses:
            headings.append("ADDRESS")
            cells = [
                (*row[:-1], _addresses(addresses.get(each[1].id, ())), row[-1])
                for row, each in zip(cells, rows, strict=True)
            ]
        print_table([*headings, "PORTS"], cells, _COLOURS)
    failures.end()


def inspect(name: NameArgument, json: JsonOption = False) -> None:
    """Show all that is known about a machine."""
    from cerne.client import connect

    host = connect()
    machine = host.get(name)
    record = machine.record
    cards = host.addresses().get(record.id, ())
    if json:
        print_json(_details(machine, record) | {"addresses": _cards(cards)})
        return
    from cerne.spec.resources import shown_resources

    spec = machine.spec
    resources = shown_resources(spec.resources)
    fields = {
        "name": record.name,
        "id": record.id,
        "state": record.state + (f" ({record.reason})" if record.reason else ""),
        "image": f"{record.image} ({short_digest(record.digest)})",
        "cpus": str(record.cpus),
        "memory": format_size(record.memory),
        "balloon": "" if spec.balloon is None else f"leaves {format_size(spec.balloon)}",
        **{word.replace("_", " "): text for word, text in resources.items()},
        "isolation": spec.isolation if spec.strict else "",
        "identity": "" if spec.identity == "own" else spec.identity,
        "engine": record.engine or spec.engine,
        "process": str(record.process.pid) if record.process else "",
        "network": ", ".join(nic.network for nic in spec.nics) or spec.network,
        "addresses": _addresses(cards),
        "egress": _egress(spec),
        "unserved": ", ".join(
            f"{role}: see {machine.engine_log.with_name(f'{role}.log')}"
            for role in machine.unserved
        ),
        "ports": ", ".join(
            f"{p.host_address}:{p.host_port} → {p.guest_port}/{p.protocol}" for p in machine.ports
        ),
        "disks": ", ".join(f"{d.serial} ({machine.disk_file(d)})" for d in spec.data_disks),
        "mounts": ", ".join(f"{m.source} → {m.target}" for m in spec.mounts),
        "parent": record.parent,
        "labels": ", ".join(f"{key}={value}" for key, value in spec.labels.items()),
        "created": _moment(record.created) or "",
        "started": _moment(record.started) or "",
        "ready": _moment(record.ready) or "",
        "systemd": machine.system_state,
        "control groups": _groups(machine),
        **{f"walls of {each.role}": _walls(each) for each in machine.walls},
        "vsock": machine.vsock,
        "console log": str(machine.console_log),
    }
    print_fields({field: value for field, value in fields.items() if value})


def logs(
    name: NameArgument,
    follow: FollowOption = False,
    engine: Annotated[
        bool, typer.Option("--engine", help="Print the log of its process instead of its console.")
    ] = False,
    tail: Annotated[
        int | None,
        typer.Option(parser=count, metavar="LINES", help="Print only so many last lines."),
    ] = None,
) -> None:
    """Print the output of a machine's serial console in its last run."""
    from cerne.client import connect

    machine = connect().get(name)
    show = _LogPrinter()
    size = machine.log_size(engine=engine)
    offset = 0 if tail is None else _last_lines(machine, tail, size, engine=engine)
    offset = _print_log(machine, show, offset, size, engine=engine)
    while follow and machine.state.live:
        time.sleep(_POLL)
        size = machine.log_size(engine=engine)
        # It starts again where it has become too large.
        offset = _print_log(machine, show, offset if offset <= size else 0, size, engine=engine)


def events(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="List the events of this machine only.")
    ] = None,
    json: JsonOption = False,
    follow: FollowOption = False,
) -> None:
    """List the events of machines; with --json and --follow, one object a line."""
    from cerne.client import connect

    host = connect()
    machine = None if name is None else host.get(name)
    if follow:
        for event in host.follow_events(machine_id=machine.id if machine else None):
            _print_event(event, json)
            sys.stdout.flush()
        return
    found = machine.events() if machine else host.events()
    if json:
        print_json([_event(event) for event in found])
        return
    for event in found:
        _print_event(event, json)


def wait(
    names: NamesArgument,
    timeout: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long to wait, such as 90s.")
    ] = None,
) -> None:
    """Wait until machines have ended, and print the state of each."""
    from cerne.client import connect
    from cerne.units import parse_duration

    host = connect()
    limit = None if timeout is None else parse_duration(timeout)
    failures = Failures()
    for name in names:
        with failures.told():
            print(host.get(name).wait(limit))
    failures.end()


def present_machines(
    machines: Iterable[Machine], failures: Failures
) -> list[tuple[Machine, Record]]:
    """The machines and their present records, without machines that were removed meanwhile."""
    found = []
    for machine in machines:
        with failures.told(), contextlib.suppress(NotFoundError):
            found.append((machine, machine.listed))
    return found


def _ports(machine: Machine, failures: Failures) -> tuple[PublishedPort, ...]:
    """Its ports; none if its specification is unreadable."""
    try:
        return machine.ports
    except CerneError as error:
        failures.add(error)
        return ()


def _row(machine: Machine, record: Record, ports: Iterable[PublishedPort]) -> tuple[str, ...]:
    created = age(datetime.fromtimestamp(record.created, UTC))
    return (
        record.name,
        record.state + (_DEGRADED if machine.unserved else ""),
        record.image,
        str(record.cpus),
        format_size(record.memory),
        record.engine,
        f"{created} ago",
        ",".join(port.short for port in ports),
    )


def _summary(machine: Machine, record: Record, ports: Iterable[PublishedPort]) -> dict[str, object]:
    return {
        "id": record.id,
        "name": record.name,
        "state": record.state,
        "reason": record.reason,
        "image": record.image,
        "digest": record.digest,
        "cpus": record.cpus,
        "memory_bytes": record.memory,
        "engine": record.engine,
        "unserved": machine.unserved,
        "ports": [asdict(port) for port in ports],
        "parent": record.parent or None,
        "pid": record.process.pid if record.process else None,
        "created": _moment(record.created),
        "started": _moment(record.started),
        "ready": _moment(record.ready),
    }


def _cards(cards: Iterable[CardRow]) -> list[dict[str, object]]:
    return [
        {"card": card.number, "mac": card.mac, "ipv4": card.ipv4, "ipv6": card.ipv6}
        for card in cards
    ]


def _addresses(cards: Iterable[CardRow]) -> str:
    """The addresses of a machine for people: by IPv4, and by IPv6 if there is no other."""
    return ",".join(address for card in cards if (address := card.ipv4 or card.ipv6))


def _egress(spec: MachineSpec) -> str:
    """What a machine may reach outside of its networks, if it is limited."""
    limits = [
        f"{nic.network}: {', '.join(map(str, nic.allow)) or nic.egress}"
        for nic in spec.nics
        if nic.allow or nic.egress != "all"
    ]
    return "; ".join(limits)


def _details(machine: Machine, record: Record) -> dict[str, object]:
    return _summary(machine, record, machine.ports) | {
        "spec": machine.spec.model_dump(mode="json"),
        "systemd": machine.system_state or None,
        "vsock": machine.vsock or None,
        "control_groups": machine.cell or None,
        "control_group_paths": [str(path) for path in machine.groups],
        "processes": [asdict(process) for process in machine.walls],
        "console_log": str(machine.console_log),
        "engine_log": str(machine.engine_log),
    }


def _groups(machine: Machine) -> str:
    paths = ", ".join(str(path) for path in machine.groups)
    return f"{machine.cell}: {paths}" if paths else machine.cell


def _walls(process: ProcessWalls) -> str:
    """The walls of one process for people, those that are missing last."""
    missing = "".join(f"; without {wall} ({why})" for wall, why in process.missing.items())
    return f"process {process.pid} of user {process.user}: {', '.join(process.up)}{missing}"


def _moment(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _event(event: Event) -> dict[str, object]:
    return {
        "number": event.number,
        "time": _moment(event.time),
        "machine": event.subject,
        "name": event.name,
        "kind": event.kind,
        "detail": event.words,
        "operation": event.operation,
    }


def _print_event(event: Event, json: bool) -> None:
    if json:
        print(json_text(_event(event)))
    else:
        words = f"{_moment(event.time)}  {event.name}  {event.kind}  {event.words}"
        print(printable(words).rstrip())


class _LogPrinter:
    """Prints the parts of a log; on a terminal, without what controls the terminal."""

    def __init__(self) -> None:
        self._decoder = getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def __call__(self, part: bytes) -> None:
        """Print the next part."""
        if not sys.stdout.isatty():
            sys.stdout.buffer.write(part)
            sys.stdout.buffer.flush()
            return
        text = self._held + self._decoder.decode(part)
        # The other half of a line's end may be in the next part.
        self._held = "\r" if text.endswith("\r") else ""
        lines = text.removesuffix(self._held).replace("\r\n", "\n").split("\n")
        sys.stdout.write("\n".join(printable(line) for line in lines))
        sys.stdout.flush()


def _print_log(
    machine: Machine, show: Callable[[bytes], None], offset: int, end: int, *, engine: bool
) -> int:
    """Print a log from an offset to another, in blocks; return where it ended."""
    while offset < end:
        part = machine.read_log(offset, engine=engine, most=min(_LOG_BLOCK, end - offset))
        if not part:
            break
        show(part)
        offset += len(part)
    return offset


def _last_lines(machine: Machine, lines: int, size: int, *, engine: bool) -> int:
    """The offset at which so many last lines begin."""
    start, ends = size, 0
    if size and lines and machine.read_log(size - 1, engine=engine, most=1) != b"\n":
        # The last line has no end yet.
        ends = 1
    while start > 0 and lines:
        before = max(0, start - _LOG_BLOCK)
        part = machine.read_log(before, engine=engine, most=start - before)
        place = len(part)
        while (place := part.rfind(b"\n", 0, place)) >= 0:
            ends += 1
            if ends > lines:
                return before + place + 1
        start = before
    return start
