"""Rows of the store that cannot be read hold up nothing else, and can be removed."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cerne.cli.app import app
from cerne.client import Host
from cerne.errors import ConflictError, DamagedError
from cerne.manager import Machine, Manager
from cerne.manager.lock import held
from cerne.spec.machine import machine_spec


def _damage(manager: Manager, table: str, column: str, **others: object) -> None:
    values = {column: "not json", **others}
    columns = ", ".join(f"{name} = ?" for name in values)
    with sqlite3.connect(manager.home.store) as database:
        database.execute(f"UPDATE {table} SET {columns}", tuple(values.values()))
    database.close()


def test_a_machine_that_cannot_be_read_is_removed_and_its_disks_are_kept(
    manager: Manager, machine: Machine
) -> None:
    machine.attach_disk("1M")
    machine.start()
    _damage(manager, "machines", "spec")
    with pytest.raises(DamagedError, match="of web"):
        _ = manager.get("web").spec
    manager.get("web").remove(force=True)
    assert manager.machines() == []
    assert [path.name for path in manager.home.disks.iterdir()] == ["web-data1.qcow2"]


def test_a_damaged_machine_whose_client_has_ended_holds_up_no_other(
    manager: Manager, machine: Machine
) -> None:
    _damage(manager, "machines", "spec", client_pid=999999, client_start_time=3, client_boot_id="x")
    other = manager.create(machine_spec(name="other", image="blank", memory="64M"))
    other.start()
    assert [each.name for each in manager.machines()] == ["other"]


def test_a_snapshot_that_cannot_be_read_is_removed(manager: Manager, machine: Machine) -> None:
    machine.snapshot("one")
    _damage(manager, "snapshots", "manifest")
    with pytest.raises(DamagedError):
        manager.snapshot("one")
    manager.remove_snapshot("one")
    assert manager.snapshot_names() == []


def test_a_pool_that_cannot_be_read_keeps_its_image_until_it_is_removed(manager: Manager) -> None:
    manager.create_pool("p", machine_spec(name="p", image="blank", memory="64M"), 0)
    _damage(manager, "pools", "spec")
    with pytest.raises(ConflictError, match="the pool p"):
        manager.remove_image("blank")
    manager.pool("p").remove()
    manager.remove_image("blank")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("created", 1e308),
        ("created", -1e300),
        ("started", float("inf")),
        ("ready", 1e20),
        ("pid", 1 << 40),
        ("pid", -1),
        ("memory", -1),
        ("cpus", -5),
        ("generation", -5),
        ("state", "gone"),
    ],
)
def test_a_value_that_no_machine_has_is_an_error_of_its_machine_alone(
    manager: Manager, machine: Machine, column: str, value: object, home: object
) -> None:
    manager.create(machine_spec(name="other", image="blank", memory="64M"))
    with sqlite3.connect(manager.home.store) as database:
        database.execute(
            f"UPDATE machines SET {column} = ?, start_time = 5, boot_id = 'x' WHERE name = 'web'",
            (value,),
        )
    database.close()
    assert manager.get("web").record.reason.startswith(f"its record is damaged: {column} ")
    assert manager.get("other").record.reason == ""
    for words in (("ls",), ("ls", "--json"), ("stats",), ("events",), ("inspect", "web")):
        ran = CliRunner().invoke(app, list(words))
        assert ran.exit_code == 0, (words, ran.output, ran.exception)
    manager.get("web").remove(force=True)
    assert [each.name for each in manager.machines()] == ["other"]


@pytest.mark.parametrize(
    ("table", "column", "command"),
    [
        ("events", "time", ("events",)),
        ("snapshots", "created", ("snapshot", "ls")),
        ("pools", "created", ("pool", "ls")),
        ("pools", "ready", ("pool", "ls")),
        ("operations", "created", ("operation", "ls")),
        ("operations", "done", ("operation", "ls")),
        ("operations", "pid", ("operation", "ls")),
    ],
)
def test_a_value_that_nothing_has_breaks_no_list(
    manager: Manager, machine: Machine, table: str, column: str, command: tuple[str, ...]
) -> None:
    machine.snapshot("one")
    manager.create_pool("p", machine_spec(name="p", image="blank", memory="64M"), 0)
    value = -(1 << 60) if column in ("ready", "done", "pid") else 1e308
    with sqlite3.connect(manager.home.store) as database:
        assert database.execute(f"UPDATE {table} SET {column} = ?", (value,)).rowcount
    database.close()
    for words in (command, (*command, "--json")):
        ran = CliRunner().invoke(app, list(words))
        assert ran.exit_code == 0, (words, ran.output, ran.exception)


@pytest.fixture
def files_of_ours(manager: Manager, machine: Machine) -> Iterator[list[Path]]:
    """Files that Cerne writes to, and another name of one."""
    machine.attach_disk("1M")
    machine.snapshot("one")
    layers = list(manager.home.layers.iterdir())
    linked = manager.home.data.parent / f"linked-{os.getpid()}"
    os.link(manager.home.disk(machine.id, "data1"), linked)
    yield [
        manager.home.store,
        manager.home.root_disk(machine.id),
        manager.home.disk(machine.id, "data1"),
        *layers,
        linked,
    ]
    linked.unlink()


def test_no_guest_is_given_a_file_of_ours(
    host: Host, files_of_ours: list[Path], tmp_path: Path
) -> None:
    other = host.create(machine_spec(name="other", image="blank", memory="64M"))
    for file in files_of_ours:
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(file)
        for path in (file, tmp_path / "link"):
            with pytest.raises(ConflictError, match="that Cerne uses itself"):
                other.attach_disk(f"{path}:format=raw")
            with pytest.raises(ConflictError, match="that Cerne uses itself"):
                host.create(
                    machine_spec(
                        name="new",
                        image="blank",
                        memory="64M",
                        data_disks=(f"{path}:format=raw",),
                    )
                )
    assert [each.name for each in host.machines()] == ["web", "other"]


def test_a_disk_that_was_detached_is_attached_again(manager: Manager, machine: Machine) -> None:
    machine.attach_disk("1M")
    kept = machine.detach_disk("data1")
    assert machine.attach_disk(kept).path == kept


def test_a_removal_waits_for_no_one_that_holds_the_layers(
    manager: Manager, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cerne.manager.disks.layers._COLLECTING_PATIENCE", 0.0)
    machine.snapshot("one")
    with held(manager.home.layers_lock, "layers", "another"):
        machine.remove()
        manager.remove_snapshot("one")
    assert manager.machines() == []
    manager.create(machine_spec(name="next", image="blank", memory="64M"))
    assert list(manager.home.layers.iterdir()) == []


def test_two_disks_of_one_name_are_both_kept(manager: Manager) -> None:
    for name, serial in (("a-b", "c"), ("a", "b-c")):
        machine = manager.create(machine_spec(name=name, image="blank", memory="64M"))
        machine.attach_disk("1M", serial)
        machine.detach_disk(serial)
    kept = {path.name for path in manager.home.disks.iterdir()}
    assert kept == {"a-b-c.qcow2", "a-b-c-2.qcow2"}


def test_a_disk_is_kept_once_where_a_command_was_killed_meanwhile(
    manager: Manager, machine: Machine
) -> None:
    machine.attach_disk("1M")
    # As after a kill between its new name and the end of its old one.
    os.link(manager.home.disk(machine.id, "data1"), manager.home.disks / "web-data1.qcow2")
    assert machine.detach_disk("data1").name == "web-data1.qcow2"
    assert [path.name for path in manager.home.disks.iterdir()] == ["web-data1.qcow2"]


def test_a_damaged_machine_that_is_stopped_is_not_killed_without_a_word(
    manager: Manager, machine: Machine
) -> None:
    machine.start()
    process = machine.record.process
    assert process is not None
    _damage(manager, "machines", "instance")
    with pytest.raises(DamagedError, match="was not asked to shut down") as refused:
        manager.get("web").stop()
    assert "cerne kill web" in refused.value.hint
    assert process.alive()
    manager.get("web").kill()
    assert not process.alive()
