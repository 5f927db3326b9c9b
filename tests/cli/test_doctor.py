"""``cerne doctor``: lines for people, JSON for programs, and its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cerne.cli.app import app
from cerne.host import report
from cerne.host.finding import Finding
from cerne.host.report import Report, Verdict


@pytest.fixture(autouse=True)
def _cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CERNE_CACHE", str(home / "cache"))


def pretend(monkeypatch: pytest.MonkeyPatch, engine: str | None) -> None:
    findings = (
        Finding("memory", "enough", True),
        Finding("tun", "there is no \x1b[31mtun", False, "sudo modprobe tun"),
        Finding("SMT", "off"),
    )
    made = Report(findings, None, Verdict(engine, "so it is"), {})
    monkeypatch.setattr(report, "make_report", lambda *_: made)


def test_a_host_that_runs_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "qemu")
    ran = CliRunner().invoke(app, ["doctor"])
    assert ran.exit_code == 0
    lines = ran.stdout.splitlines()
    assert lines[0].split() == ["ok", "memory", "enough"]
    assert lines[1].startswith("--  tun")
    assert lines[2].strip() == "sudo modprobe tun"
    assert "\x1b" not in ran.stdout


def test_a_host_that_runs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, None)
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 1
    ran = CliRunner().invoke(app, ["doctor", "--json"])
    assert ran.exit_code == 1
    assert json.loads(ran.stdout)["able"] is False


def test_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = CliRunner().invoke(app, ["doctor", "--json"])
    told = json.loads(ran.stdout)
    assert ran.exit_code == (0 if told["able"] else 1)
    assert {finding["topic"] for finding in told["findings"]} >= {"KVM", "QEMU", "engine"}
