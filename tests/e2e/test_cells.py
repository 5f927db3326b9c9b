"""Cells on hosts with version 2 of control groups: systemd's, the kernel's own, and delegated ones.

Each boot of such a host (tests/e2e/host_with_groups.py) runs the trials of
`tests/host/cell_trials.py` as root and as another user.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.host_at_speed import Report, require_disk_maker
from tests.e2e.host_with_groups import make_disk, report_of
from tests.host.cell_trials import TRIALS

from cerne.manager import Home

_LIMIT = 1800
"""Seconds for a host and all its trials, which take two minutes where little else runs."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * _LIMIT + 600)]


@pytest.fixture(scope="module")
def disk() -> Iterator[Path]:
    require_disk_maker()
    with tempfile.TemporaryDirectory(prefix="cerne-host-") as work:
        yield make_disk(Home.of_this_user().cache, Path(work))


@pytest.fixture(scope="module", params=["systemd", "plain"])
def report(qemu: Path, disk: Path, request: pytest.FixtureRequest) -> tuple[str, Report]:
    kind = str(request.param)
    report = report_of(qemu, disk, _LIMIT, systemd=kind == "systemd")
    print(report.text)
    return kind, report


@pytest.mark.parametrize("user", ["root", "user"])
def test_each_trial_succeeds(report: tuple[str, Report], user: str) -> None:
    kind, host = report
    said = host.said(user)
    assert [line.partition(":")[0] for line in said.splitlines()] == [
        trial.__name__ for trial in TRIALS
    ]
    assert ("systemd" if kind == "systemd" else "cgroup v2") in said.splitlines()[0]


def test_a_user_to_whom_nothing_is_delegated_is_told_so(report: tuple[str, Report]) -> None:
    kind, host = report
    if kind == "systemd":
        pytest.skip("systemd delegates to each user")
    assert "delegated to you" in host.steps["alone"].said


def test_nothing_is_left(report: tuple[str, Report]) -> None:
    assert report[1].said("left") == ""
