"""``cerne top``: a table of 80 columns that no machine holds up."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import NoReturn, cast

import pytest
from rich.console import Console
from tests.waiting import eventually

from cerne.cli import usage
from cerne.cli.failure import Failures
from cerne.cli.listing import present_machines
from cerne.client import Host, Machine, Stats
from cerne.engine.base import Activity, GuestMemoryUse
from cerne.errors import NotAnsweringError, NotFoundError, StateError
from cerne.host.cgroup import Usage
from cerne.units import GIB, MIB

BUSY = Stats(
    uptime=100.0,
    cpu_seconds=10.0,
    resident=900 * MIB,
    memory=4 * GIB,
    disk=0,
    threads=4,
    all_cpu_seconds=10.0,
    proportional=500 * MIB,
    steal_seconds=1.0,
    activity=Activity(0, 0, 0, 0, 0, 0, 0),
    measured=1.0,
    cell=Usage(10.0, 0, 4, {"cpu": 12.5, "memory": 97.0, "io": 0.0}),
    guest=GuestMemoryUse(3 * GIB, None),
)
LATER = replace(
    BUSY,
    all_cpu_seconds=13.0,
    steal_seconds=1.5,
    activity=Activity(2 * GIB, 20 * MIB, 30_000, 20_000, 2000, 1000, 2_500_000),
    measured=3.0,
)


class FakeMachine:
    """A machine with an answer for each time that it is measured."""

    def __init__(self, name: str, *answers: Stats | Exception) -> None:
        self.id = self.name = name
        self.hangs = threading.Event()
        self.hangs.set()
        self._answers = [*answers]

    @property
    def listed(self) -> SimpleNamespace:
        return SimpleNamespace(state="running")

    def stats(self) -> Stats:
        self.hangs.wait()
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


class FakeHost:
    """A host with some machines."""

    def __init__(self, *machines: FakeMachine) -> None:
        self.present = [*machines]

    def machines(self) -> list[FakeMachine]:
        return self.present


def _watch(host: FakeHost) -> usage._Watch:
    return usage._Watch(cast(Host, host), None)


@pytest.fixture
def hanging() -> Iterator[FakeMachine]:
    """A machine that does not answer."""
    machine = FakeMachine("hung", BUSY)
    machine.hangs.clear()
    yield machine
    machine.hangs.set()


def _screen(lines: list[usage._Line], width: int = 80, height: int = 24) -> list[str]:
    console = Console(width=width, height=height, file=io.StringIO(), force_terminal=False)
    console.print(usage._screen(lines, console))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(text, str)
    return text.splitlines()


def _lines(*machines: FakeMachine) -> list[usage._Line]:
    watch = _watch(FakeHost(*machines))
    watch.measure(60)
    return watch.measure(60)


def test_a_table_has_what_happened_in_a_second() -> None:
    lines = _screen(_lines(FakeMachine("web", BUSY, LATER)))
    assert lines[0].split() == [*usage._HEADINGS]
    assert lines[1].split() == [
        *("web", "150", "25", "500M", "1.0G", "1.0G", "10M", "25k", "1000", "500", "1M", "mem97")
    ]


def test_80_columns_are_enough() -> None:
    most = replace(
        LATER,
        all_cpu_seconds=1290.0,
        steal_seconds=129.0,
        proportional=1023 * GIB,
        activity=Activity(*(7 * (10**12,)), ()),
        cell=Usage(1.0, 1, 1, {"memory": 100.0}),
    )
    lines = _screen(_lines(FakeMachine("a-machine-with-a-long-name", BUSY, most)))
    assert len(lines) == 3
    assert all(len(line) <= 80 for line in lines)
    assert lines[1].startswith("a-machine-")
    assert lines[1].rstrip().endswith("mem99")


def test_more_machines_than_lines_are_counted() -> None:
    lines = _screen(_lines(*(FakeMachine(f"m{n}", BUSY) for n in range(40))), height=24)
    assert len(lines) <= 24
    assert lines[-1].startswith("and 20 more.")


def test_a_machine_that_hangs_holds_up_no_other(hanging: FakeMachine) -> None:
    watch = _watch(FakeHost(hanging, FakeMachine("web", BUSY, LATER)))
    watch.measure(0)
    web = None

    def measured() -> bool:
        nonlocal web
        _, web = watch.measure(0)
        return web.rates is not None

    eventually(measured)
    hung, _ = watch.measure(0)
    assert hung.stats is None
    assert hung.trouble is not None
    assert hung.trouble.message == "hung has not answered yet"
    assert "hung has not answered yet" in "\n".join(_screen([hung]))


def test_a_machine_that_ends_leaves_the_table() -> None:
    ending = FakeMachine("web", BUSY, StateError("web has just ended"))
    host = FakeHost(ending, FakeMachine("db", BUSY))
    watch = _watch(host)
    assert [line.name for line in watch.measure(60)] == ["web", "db"]
    assert [line.name for line in watch.measure(60)] == ["db"]
    host.present = []
    assert watch.measure(60) == []
    assert _screen([])[-1].startswith("No machine runs.")


def test_a_narrow_terminal_shows_names_and_the_columns_that_fit() -> None:
    lines = _screen(_lines(FakeMachine("a-machine-with-a-long-name", BUSY, LATER)), width=40)
    assert lines[0].split() == ["NAME", "CPU%", "ST%", "MEM", "BALL", "READ"]
    assert lines[1].startswith("a-mach")
    assert lines[-1].startswith("q ends. Not shown: 6 columns.")
    assert max(map(len, lines)) <= 40


def test_a_machine_that_does_not_answer_says_so_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = NotAnsweringError("process 7 of web does not answer", hint="kill -CONT 7")
    host = FakeHost(FakeMachine("web", replace(BUSY, hangs=error)))
    monkeypatch.setattr("cerne.client.connect", lambda: host)
    with pytest.raises(SystemExit) as ended:
        usage.top(interval="200ms")
    assert ended.value.code == 9
    printed = capsys.readouterr()
    assert printed.out.splitlines()[1].startswith("web")
    assert printed.err.splitlines() == ["cerne: process 7 of web does not answer", "  kill -CONT 7"]


class RemovedMachine(FakeMachine):
    """A machine that another command removed after it was found."""

    @property
    def listed(self) -> NoReturn:
        raise NotFoundError("there is no machine named gone")


def test_machines_that_go_meanwhile_leave_the_others_in_the_lists(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machines = [
        RemovedMachine("gone"),
        FakeMachine("removed", NotFoundError("there is no machine named removed")),
        FakeMachine("ended", StateError("ended has just ended")),
        FakeMachine("web", BUSY),
    ]
    monkeypatch.setattr("cerne.client.connect", lambda: FakeHost(*machines))
    usage.stats(json=True)
    printed = capsys.readouterr()
    assert [each["name"] for each in json.loads(printed.out)] == ["web"]
    assert printed.err == ""
    failures = Failures()
    present = present_machines(cast(Iterable[Machine], machines), failures)
    assert [machine.name for machine, _ in present] == ["removed", "ended", "web"]
    failures.end()


def test_programs_get_the_counters_and_the_rates(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    host = FakeHost(FakeMachine("web", BUSY, LATER))
    monkeypatch.setattr("cerne.client.connect", lambda: host)
    usage.top(interval="200ms", json=True)
    (found,) = json.loads(capsys.readouterr().out)
    assert found["rates"]["cpus"] == 1.5
    assert found["rates"]["disk_requests"] == 25_000
    assert found["disk_read_bytes"] == 2 * GIB
    assert found["balloon_bytes"] == GIB
    assert found["all_processes"]["pressure"]["memory"] == 97.0


def test_memory_that_this_user_may_not_see_is_at_most_what_is_resident() -> None:
    (line,) = _lines(FakeMachine("web", replace(BUSY, proportional=None)))
    assert usage._row(line)[3] == "≤900M"
