"""Work in the background is done in the home of the manager that asks for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.manager.conftest import FakeEngine

from cerne.manager import Home, Machine, Manager
from cerne.manager.background import run_later
from cerne.manager.worker import main
from cerne.spec.machine import machine_spec
from cerne.spec.upgrade import stored_spec


@pytest.fixture
def another_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: Path) -> None:
    """The environment names another home than the manager's from now on."""
    monkeypatch.setenv("CERNE_HOME", str(home / "another"))


def _arguments(home: Home) -> list[str]:
    return [str(home.data), str(home.runtime), str(home.cache)]


def test_a_machine_is_removed_from_this_home(
    manager: Manager, machine: Machine, another_home: None, tmp_path: Path
) -> None:
    with manager._store.changes() as changes:
        run_later(manager.home, "remove", machine.id, tmp_path / "log")
        while manager._store.find("web") is not None:
            changes.wait()
    assert not (manager.home.data / "another").exists()
    assert (tmp_path / "log").read_text() == ""


def test_what_goes_wrong_is_in_the_log(
    manager: Manager, another_home: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*_arguments(manager.home), "fill", "p"]) == 1
    assert capsys.readouterr().err == "there is no pool named p\nsee: cerne pool ls\n"


def test_one_that_is_gone_is_no_error(manager: Manager, machine: Machine) -> None:
    machine.remove()
    assert main([*_arguments(manager.home), "remove", machine.id]) == 0


@dataclass
class _Asked:
    works: list[tuple[Home, str, str]] = field(default_factory=list)

    def __call__(self, home: Home, work: str, subject: str, log: Path) -> None:
        self.works.append((home, work, subject))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> _Asked:
    """What is to be done in the background, and is not."""
    asked = _Asked()
    for module in ("pool", "template"):
        monkeypatch.setattr(f"cerne.manager.warm.{module}.run_later", asked)
    return asked


def test_pools_are_filled_in_their_home(
    manager: Manager, another_home: None, asked: _Asked
) -> None:
    spec = machine_spec(name="p", image="blank", memory="64M")
    manager.create_pool("p", spec, 0).take()
    assert asked.works == [(manager.home, "fill", "p")]


def test_a_template_is_made_of_what_tells_it_from_others(
    manager: Manager, another_home: None, asked: _Asked
) -> None:
    spec = machine_spec(
        name="web", image="blank", memory="64M", disk="2M", cpus=2, labels={"secret": "no"}
    )
    manager.templates.make_later(spec)
    ((home, work, subject),) = asked.works
    assert (home, work) == (manager.home, "warm")
    assert "secret" not in subject
    made = stored_spec(subject, "a template")
    assert (made.image, made.memory, made.root_size, made.cpus) == ("blank", 64 << 20, 2 << 20, 2)


def test_how_fast_guests_run_is_looked_up_in_this_home(
    manager: Manager, monkeypatch: pytest.MonkeyPatch, engine: FakeEngine
) -> None:
    looked: list[Path] = []

    def choose(requested: str, guest_speed: Path) -> FakeEngine:
        looked.append(guest_speed)
        return engine

    monkeypatch.setattr("cerne.engine.select.choose_engine", choose)
    other = Home(manager.home.data, manager.home.runtime, manager.home.data / "cache")
    choose_engine: Callable[[str], object] = Manager(other)._context.choose_engine
    choose_engine("auto")
    assert looked == [other.guest_speed]
