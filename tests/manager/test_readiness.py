"""Telling why a guest did not become ready, once its logs are gone too."""

from __future__ import annotations

from pathlib import Path

import pytest

from cerne.client import Host
from cerne.errors import (
    CerneError,
    ConflictError,
    EngineError,
    GuestError,
    GuestTimeoutError,
    InputError,
    NotFoundError,
)
from cerne.images.parts import Parts
from cerne.manager import Machine, Manager
from cerne.manager.machines.watch import quote_logs
from cerne.spec.machine import machine_spec
from cerne.units import MIB


def test_the_last_lines_of_a_log_stand_for_its_path(tmp_path: Path) -> None:
    console, engine = tmp_path / "console.log", tmp_path / "engine.log"
    console.write_text("one\n\ntwo\n")
    error: CerneError = GuestTimeoutError(
        "late", hint=f"its console log is {console}; --timeout gives it longer"
    )
    quote_logs(error, (console, engine))
    lines = error.hint.splitlines()
    assert lines == ["--timeout gives it longer", "the last lines of console.log:", "one", "two"]
    error = EngineError("no", hint=f"its log is {engine}")
    quote_logs(error, (console, engine))
    assert error.hint == "engine.log is empty"
    error = EngineError("no", hint="another hint")
    quote_logs(error, (console, engine))
    assert error.hint == "another hint"


def test_a_machine_that_is_removed_leaves_what_its_console_said(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(machine: Machine, *_: object, **_options: object) -> None:
        machine.console_log.write_text("no root disk\n")
        raise EngineError("it ended", hint=f"its console log is {machine.console_log}")

    monkeypatch.setattr(Machine, "start", start)
    spec = machine_spec(name="web", image="blank", memory="64M")
    with pytest.raises(EngineError) as failed:
        host.run(spec)
    assert failed.value.hint == ("the last lines of console.log:\nno root disk\nweb was removed")
    assert host.machines() == []
    with pytest.raises(EngineError) as failed:
        host.run(spec, keep_failed=True)
    log = host.get("web").console_log
    assert failed.value.hint.splitlines()[0] == f"its console log is {log}"


def test_memory_in_which_an_image_does_not_boot_is_refused(
    manager: Manager, tmp_path: Path
) -> None:
    kernel = manager.home.images / "work" / "kernel"
    kernel.write_bytes(b"kernel")
    manager.images.add("small", Parts(kernel, agent=True, least_memory=40 * MIB), source="a test")
    assert manager.images.get("small").least_memory == 40 * MIB
    for memory in ("32M", "39M"):
        spec = machine_spec(name="web", image="small", memory=memory)
        for make in (manager.create, manager.run, manager.warm):
            with pytest.raises(InputError, match="does not boot") as refused:
                make(spec)
            assert "--memory 40M" in refused.value.hint
    assert manager.machines() == []
    manager.create(machine_spec(name="web", image="small", memory="40M"))
    # Of what others made nobody knows it.
    manager.create(machine_spec(name="old", image="blank", memory="32M"))


def test_an_image_without_agent_is_refused_before_a_machine_is_made(host: Host) -> None:
    with pytest.raises(GuestError, match="no agent") as refused:
        host.require_agent(machine_spec(name="web", image="blank"))
    assert "cerne run -d" in refused.value.hint


def test_a_wrong_network_or_name_is_refused_before_an_image_is_made(host: Host) -> None:
    host.create(machine_spec(name="taken", image="blank", memory="64M"))
    with pytest.raises(NotFoundError, match="no network named lan"):
        host.require_agent(machine_spec(name="web", image="missing", network="lan"))
    with pytest.raises(ConflictError, match="taken"):
        host.require_agent(machine_spec(name="taken", image="missing"))
