"""Commands that show what running machines use of the host: once, or as a table that is renewed."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from cerne.cli.failure import Failures
from cerne.cli.listing import present_machines
from cerne.cli.options import JsonOption
from cerne.cli.output import print_json, print_table, printable
from cerne.errors import CerneError, InputError, NotFoundError, StateError
from cerne.units import GIB, KIB, MIB, TIB, counted, format_size

if TYPE_CHECKING:
    from rich.console import Console, Group

    from cerne.client import Host, Machine, Rates, Stats

NamesOfRunning = Annotated[
    list[str] | None, typer.Argument(metavar="[NAME...]", help="Machines; all that run.")
]

_MOST_ASKED_AT_ONCE = 64
_SHORTEST_INTERVAL, _LONGEST_INTERVAL = 0.2, 3600.0
_PATIENCE = 5.0
"""Seconds that a table waits for machines that do not answer before it is printed once."""
_UNKNOWN = "-"
_HEADINGS = (
    *("NAME", "CPU%", "ST%", "MEM", "BALL", "READ", "WRITE", "IOPS", "RECV", "SENT", "EXITS"),
    "WAIT",
)
_WIDTHS = {"ST%": 4, "MEM": 6}
"""The widest cells of columns, if they are not of five characters."""
_NARROWEST_NAME = 8
_FOOT = "Bytes and exits are a second's."


def stats(names: NamesOfRunning = None, json: JsonOption = False) -> None:
    """Show what running machines use of this host."""
    from cerne.client import connect

    host = connect()
    failures = Failures()
    if names:
        measured = _measured(_named(host, names, failures), failures)
    else:
        measured = _measured(_running(host, failures), failures, may_end=True)
    if json:
        print_json([_counters(name, found) for name, found in measured])
    else:
        rows = [
            (
                name,
                f"{found.uptime:.0f}s",
                f"{found.cpu_seconds:.1f}s",
                format_size(found.resident),
                _of_guest(found),
                format_size(found.memory),
                format_size(found.disk),
            )
            for name, found in measured
        ]
        print_table(("NAME", "UPTIME", "CPU", "RESIDENT", "USED", "MEMORY", "DISK"), rows)
    failures.end()


def top(
    names: NamesOfRunning = None,
    interval: Annotated[
        str, typer.Option(metavar="TIME", help="The time between two measurements, such as 500ms.")
    ] = "2s",
    once: Annotated[
        bool, typer.Option("--once", help="Print the table once, as in a pipe.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Show what running machines use of this host each second, until q is pressed.

    CPU% and ST% are parts of one CPU: the time that all processes of a machine use, and the time in
    which its vCPUs wait for a CPU. MEM is the memory of its processes; a page that several machines
    share counts for each in part. BALL is what its balloon holds. READ, WRITE, IOPS, RECV and SENT
    are what its guest does with disks and network cards, EXITS how often its vCPUs leave the guest.
    WAIT is the resource for which its processes wait most, and the percentage of the last 10
    seconds (PSI). What this host or the engine does not count is "-".
    """
    from cerne.client import connect
    from cerne.units import parse_duration

    seconds = parse_duration(interval)
    if not _SHORTEST_INTERVAL <= seconds <= _LONGEST_INTERVAL:
        raise InputError(
            f"the interval {interval} is not between 200ms and 1h", hint="write it as 2s"
        )
    watch = _Watch(connect(), names)
    if once or json or not sys.stdout.isatty():
        _print_once(watch, seconds, json=json)
    else:
        _show(watch, seconds)


@dataclass(slots=True)
class _Line:
    """One machine of the table."""

    name: str
    stats: Stats | None = None
    rates: Rates | None = None
    trouble: CerneError | None = None
    """Why its values are missing or old."""


class _Watch:
    """Measures machines again and again, each in a thread that delays no other machine."""

    def __init__(self, host: Host, names: Sequence[str] | None) -> None:
        """Take the machines of these names, or all that run.

        Raises:
            NotFoundError: there is no machine of a name.
        """
        self._host = host
        self._chosen = [host.get(name) for name in names or ()]
        self._lines: dict[str, _Line] = {}
        self._asking: dict[str, threading.Thread] = {}

    def measure(self, patience: float) -> list[_Line]:
        """Measure all machines, and wait for those that answer within so many seconds."""
        deadline = time.monotonic() + patience
        machines = {machine.id: machine for machine in self._machines()}
        for machine_id in self._lines.keys() - machines.keys():
            del self._lines[machine_id]
        for machine_id, machine in machines.items():
            self._ask(machine_id, machine)
        for machine_id in machines:
            self._asking[machine_id].join(max(0.0, deadline - time.monotonic()))
        return [self._line(machine_id) for machine_id in machines if machine_id in self._lines]

    def _line(self, machine_id: str) -> _Line:
        line = self._lines[machine_id]
        if self._asking[machine_id].is_alive() and line.trouble is None:
            line.trouble = StateError(f"{line.name} has not answered yet")
        return line

    def _machines(self) -> list[Machine]:
        if self._chosen:
            return self._chosen
        failures = _Silent()
        present = present_machines(self._host.machines(), failures)
        return [machine for machine, record in present if record.state in ("running", "paused")]

    def _ask(self, machine_id: str, machine: Machine) -> None:
        if machine_id in self._asking and self._asking[machine_id].is_alive():
            return
        line = self._lines.setdefault(machine_id, _Line(machine.name))
        # Not of a pool, which waits at its end: a read of /proc may hang with the machine.
        self._asking[machine_id] = threading.Thread(
            target=self._answer, args=(machine_id, machine, line), daemon=True
        )
        self._asking[machine_id].start()

    def _answer(self, machine_id: str, machine: Machine, line: _Line) -> None:
        try:
            found = machine.stats()
        except (NotFoundError, StateError) as error:
            if self._chosen:
                line.stats, line.rates, line.trouble = None, None, error
            else:
                # It has ended.
                self._lines.pop(machine_id, None)
        except CerneError as error:
            line.trouble = error
        else:
            line.rates = None if line.stats is None else found.since(line.stats)
            line.stats, line.trouble = found, found.hangs


class _Silent(Failures):
    """Failures that the table does not report, because it shows each machine that it can."""

    def add(self, error: CerneError) -> None:
        pass


def _print_once(watch: _Watch, interval: float, *, json: bool) -> None:
    watch.measure(_PATIENCE)
    time.sleep(interval)
    lines = watch.measure(_PATIENCE)
    if json:
        print_json(
            [
                _counters(line.name, line.stats)
                | {"rates": None if line.rates is None else asdict(line.rates)}
                for line in lines
                if line.stats is not None
            ]
        )
    else:
        print_table(_HEADINGS, [_row(line) for line in lines])
    failures = Failures()
    for line in lines:
        if line.trouble is not None:
            failures.add(line.trouble)
    failures.end()


def _show(watch: _Watch, interval: float) -> None:
    """Show the table until a key or a signal ends it."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    watch.measure(0)
    with (
        contextlib.suppress(KeyboardInterrupt),
        _keys() as keys,
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        # The first rates need two measurements, which are soon after one another.
        pause = _SHORTEST_INTERVAL
        while True:
            lines = watch.measure(min(interval, 1.0))
            live.update(_screen(lines, console), refresh=True)
            if _q_pressed(keys, pause):
                return
            pause = interval


def _screen(lines: Sequence[_Line], console: Console) -> Group:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 1, 0, 0), expand=False, header_style="bold")
    widths = _fitting(console.width)
    # Only names are shortened; a space is after each column.
    room = console.width - sum(widths.values()) - len(widths) - 1
    table.add_column("NAME", no_wrap=True, overflow="ellipsis", max_width=room)
    for heading, width in widths.items():
        table.add_column(heading, justify="right", no_wrap=True, min_width=width)
    ordered = sorted(lines, key=_cpu_used, reverse=True)
    troubles = [line for line in ordered if line.trouble is not None]
    most = max(1, console.height - 4 - min(2, len(troubles)))
    for line in ordered[:most]:
        style = "red" if line.trouble is not None else ""
        table.add_row(*(Text(cell) for cell in _row(line)[: len(widths) + 1]), style=style)
    foot = [f"and {len(ordered) - most} more."] if len(ordered) > most else []
    foot += [] if ordered else ["No machine runs."]
    foot.append("q ends.")
    hidden = len(_HEADINGS) - 1 - len(widths)
    foot += [f"Not shown: {counted(hidden, 'column')}."] if hidden else []
    foot += [_FOOT] if ordered else []
    said = [line.trouble.message for line in troubles[:2] if line.trouble is not None]
    return Group(
        table,
        *(Text(printable(words), style="red", no_wrap=True, overflow="ellipsis") for words in said),
        Text(" ".join(foot), style="dim", no_wrap=True, overflow="ellipsis"),
    )


def _fitting(columns: int) -> dict[str, int]:
    """The headings that fit beside a name into so many columns, with their widths."""
    found: dict[str, int] = {}
    left = columns - _NARROWEST_NAME - 1
    for heading in _HEADINGS[1:]:
        width = _WIDTHS.get(heading, 5)
        left -= width + 1
        if left < 0:
            break
        found[heading] = width
    return found


def _cpu_used(line: _Line) -> float:
    return (line.rates.cpus if line.rates else None) or 0.0


def _row(line: _Line) -> tuple[str, ...]:
    found, rates = line.stats, line.rates
    return (
        printable(line.name),
        _percent(rates.cpus if rates else None),
        _percent(rates.steal if rates else None),
        _memory(found),
        _short(found.balloon if found else None),
        _short(rates.disk_read if rates else None),
        _short(rates.disk_written if rates else None),
        _count(rates.disk_requests if rates else None),
        _short(rates.received if rates else None),
        _short(rates.sent if rates else None),
        _count(rates.exits if rates else None),
        _pressure(found),
    )


def _percent(cpus: float | None) -> str:
    return _UNKNOWN if cpus is None else f"{100 * cpus:.0f}"


def _memory(found: Stats | None) -> str:
    """Its own memory; where that is unknown, what its process holds, which is not less."""
    if found is None:
        return _UNKNOWN
    if found.proportional is None:
        return f"≤{_short(found.resident)}"
    return _short(found.proportional)


def _short(size: float | None) -> str:
    """A number of bytes in five characters at most."""
    if size is None:
        return _UNKNOWN
    for unit, name in ((TIB, "T"), (GIB, "G"), (MIB, "M"), (KIB, "K")):
        if size >= unit:
            part = size / unit
            return f"{part:.1f}{name}" if part < 10 else f"{part:.0f}{name}"
    return f"{size:.0f}"


def _count(number: float | None) -> str:
    """A number in five characters at most."""
    if number is None:
        return _UNKNOWN
    if number < 10_000:
        return f"{number:.0f}"
    for unit, name in ((1e9, "G"), (1e6, "M")):
        if number >= unit:
            return f"{number / unit:.0f}{name}"
    return f"{number / 1000:.0f}k"


_PRESSURES = {"cpu": "cpu", "memory": "mem", "io": "io"}


def _pressure(found: Stats | None) -> str:
    """The resource for which its processes wait most."""
    pressure = found.cell.pressure if found is not None and found.cell is not None else {}
    if not pressure:
        return _UNKNOWN
    most = max(pressure, key=lambda each: pressure[each])
    return (
        f"{_PRESSURES.get(most, most)}{min(99, round(pressure[most]))}" if pressure[most] else "0"
    )


@contextlib.contextmanager
def _keys() -> Iterator[int | None]:
    """Give the terminal's keys at once and unseen during the block; None if stdin has none."""
    import termios
    import tty

    if not sys.stdin.isatty():
        yield None
        return
    descriptor = sys.stdin.fileno()
    saved = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, saved)


def _q_pressed(keys: int | None, seconds: float) -> bool:
    """Wait so long, or until q is pressed; return whether it was."""
    import os
    import select

    if keys is None:
        time.sleep(seconds)
        return False
    deadline = time.monotonic() + seconds
    while True:
        readable, _, _ = select.select([keys], [], [], max(0.0, deadline - time.monotonic()))
        if not readable:
            return False
        pressed = os.read(keys, 64)
        if not pressed or b"q" in pressed:
            return True


def _named(host: Host, names: Iterable[str], failures: Failures) -> list[Machine]:
    found = []
    for name in names:
        with failures.told():
            found.append(host.get(name))
    return found


def _running(host: Host, failures: Failures) -> list[Machine]:
    present = present_machines(host.machines(), failures)
    return [machine for machine, record in present if record.state in ("running", "paused")]


def _measured(
    machines: Sequence[Machine], failures: Failures, *, may_end: bool = False
) -> list[tuple[str, Stats]]:
    """What each machine uses; all are asked at the same time, so that none delays another."""
    from concurrent.futures import ThreadPoolExecutor

    if not machines:
        return []
    measured = []
    with ThreadPoolExecutor(min(len(machines), _MOST_ASKED_AT_ONCE)) as threads:
        asked = [(machine.name, threads.submit(machine.stats)) for machine in machines]
        for name, answer in asked:
            ended = (NotFoundError, StateError) if may_end else ()
            with failures.told(), contextlib.suppress(*ended):
                found = answer.result()
                measured.append((name, found))
                if found.hangs is not None:
                    failures.add(found.hangs)
    return measured


def _of_guest(stats: Stats) -> str:
    """The memory that its guest reports as used."""
    used = stats.guest.used if stats.guest else None
    return _UNKNOWN if used is None else format_size(used)


def _counters(name: str, found: Stats) -> dict[str, object]:
    """What a machine uses and has done since its start, in plain types."""
    done = found.activity
    return {
        "name": name,
        "uptime_seconds": round(found.uptime, 3),
        "cpu_seconds": found.cpu_seconds,
        "all_cpu_seconds": found.all_cpu_seconds,
        "steal_seconds": found.steal_seconds,
        "resident_bytes": found.resident,
        "proportional_bytes": found.proportional,
        "memory_bytes": found.memory,
        "balloon_bytes": found.balloon,
        "guest_memory_bytes": found.guest.given if found.guest else None,
        "guest_used_bytes": found.guest.used if found.guest else None,
        "disk_bytes": found.disk,
        "disk_read_bytes": done.disk_read if done else None,
        "disk_written_bytes": done.disk_written if done else None,
        "disk_reads": done.disk_reads if done else None,
        "disk_writes": done.disk_writes if done else None,
        "received_bytes": done.received if done else None,
        "sent_bytes": done.sent if done else None,
        "exits": done.exits if done else None,
        "threads": found.threads,
        "all_processes": None if found.cell is None else asdict(found.cell),
    }
