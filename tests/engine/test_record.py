"""What is kept of a machine that runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cerne.engine.plan import FirmwareBoot, LaunchPlan
from cerne.engine.record import InstanceRecord
from cerne.errors import DamagedError
from cerne.host.process import ProcessIdentity


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
