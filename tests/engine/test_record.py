"""What is kept of a machine that runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from cerne.engine import supervised
from cerne.engine.plan import FirmwareBoot, LaunchPlan
from cerne.engine.record import InstanceRecord
from cerne.engine.supervisor import Task
from cerne.errors import DamagedError
from cerne.host.process import ProcessIdentity
from cerne.vmm.jail.program import Room


@pytest.fixture
def record(tmp_path: Path) -> InstanceRecord:
    directories = (tmp_path / "run", tmp_path / "logs")
    plan = LaunchPlan("0123", "web", 1, 1 << 26, FirmwareBoot(), (), (), (), *directories)
    process = ProcessIdentity(12, 345, "boot")
    directory = tmp_path / "vsock"
    return InstanceRecord.of(
        plan, process, "native", "native 6 abc", vsock_directory=directory, shares_memory=True
    )


def test_it_is_read_as_it_was_written(record: InstanceRecord) -> None:
    assert InstanceRecord.from_json(record.to_json()) == record


@pytest.mark.parametrize(
    "change",
    [{"format": 2}, {"process": [1, 2]}, {"process": None}, {"memory": "much"}, {"agents": 7}],
)
def test_what_is_damaged_is_refused(record: InstanceRecord, change: dict[str, object]) -> None:
    with pytest.raises(DamagedError, match="record of a running machine"):
        InstanceRecord.from_json(json.dumps({**json.loads(record.to_json()), **change}))


@pytest.mark.parametrize("text", ["", "[]", "7", "{}", "[" * 100_000])
def test_what_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(DamagedError):
        InstanceRecord.from_json(text)


@pytest.mark.parametrize("strict", [False, True])
def test_what_serves_a_card_that_comes_later_has_own_cores_if_the_machine_has(
    record: InstanceRecord, monkeypatch: pytest.MonkeyPatch, strict: bool
) -> None:
    started: list[Sequence[str]] = []
    monkeypatch.setattr(supervised, "spawn", lambda argv, *_: started.append(argv))
    for directory in (record.runtime, record.logs):
        directory.mkdir()
    kept = InstanceRecord.from_json(replace(record, strict=strict).to_json())
    task = Task("passt", ["passt"])
    supervised.start_supervisor(kept, "net1", task, Room(filter=b""), own_user=False)
    (argv,) = started
    assert ("own-cores" in Task.from_word(argv[-1]).room) is strict


def test_a_record_of_an_older_version_is_of_a_machine_that_is_not_strict(
    record: InstanceRecord,
) -> None:
    values = json.loads(record.to_json())
    del values["strict"]
    assert not InstanceRecord.from_json(json.dumps(values)).strict
