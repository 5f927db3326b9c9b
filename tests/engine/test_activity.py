"""Asking a machine's process what its devices have done, which may answer anything."""

from __future__ import annotations

import pytest
from tests.engine.test_qmp import Message, Serve

from cerne.engine.base import Activity
from cerne.engine.qmp.activity import activity


def _asked(serve: Serve, answers: dict[str, object]) -> Activity:
    def script(command: Message) -> list[Message]:
        if command["execute"] == "qmp_capabilities":
            return [{"return": {}}]
        if command["execute"] not in answers:
            return [{"error": {"class": "CommandNotFound", "desc": "no such command"}}]
        return [{"return": answers[str(command["execute"])]}]

    return activity(serve(script).path)


def _disk(read: int, reads: int) -> Message:
    stats = {"rd_bytes": read, "rd_operations": reads, "wr_bytes": 5, "wr_operations": 1}
    return {"device": "d", "stats": stats}


def test_disks_and_processors_are_added_up(serve: Serve) -> None:
    exits = [{"name": "halts", "value": 9}, {"name": "exits", "value": 7}]
    found = _asked(
        serve,
        {
            "query-blockstats": [_disk(1000, 2), _disk(24, 1)],
            "cerne-query-traffic": {"received": 3, "sent": 4},
            "query-cpus-fast": [{"thread-id": 11}, {"thread-id": 12}],
            "query-stats": [{"provider": "kvm", "stats": exits}] * 2,
        },
    )
    assert found == Activity(
        disk_read=1024,
        disk_reads=3,
        disk_written=10,
        disk_writes=2,
        received=3,
        sent=4,
        exits=14,
        vcpu_threads=(11, 12),
    )


def test_what_a_process_does_not_count_is_unknown(serve: Serve) -> None:
    assert _asked(serve, {"query-blockstats": [], "query-stats": []}) == Activity(
        disk_read=0, disk_reads=0, disk_written=0, disk_writes=0
    )


@pytest.mark.parametrize("wrong", [None, 7, "x", [7], [{"stats": 7}], {"received": "x"}])
def test_a_wrong_answer_is_unknown(serve: Serve, wrong: object) -> None:
    commands = ("query-blockstats", "cerne-query-traffic", "query-cpus-fast", "query-stats")
    found = _asked(serve, dict.fromkeys(commands, wrong))
    assert (found.exits, found.received, found.sent, found.vcpu_threads) == (None, None, None, ())


@pytest.mark.parametrize("wrong", [-1, True, 1.5, 1 << 64, "7"])
def test_a_wrong_number_is_unknown(serve: Serve, wrong: object) -> None:
    found = _asked(serve, {"query-blockstats": [{"stats": {"rd_bytes": wrong}}]})
    assert found.disk_read is None
