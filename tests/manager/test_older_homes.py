"""Homes that older code made are used as they are (`fixtures/make_home.py` made them)."""

from __future__ import annotations

import os
import sqlite3
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.manager.conftest import FakeEngine

from cerne.errors import ConflictError
from cerne.manager import Home, Manager, State
from cerne.manager.store import Store
from cerne.manager.store.migrations import VERSION
from cerne.spec.machine import machine_spec

_HOMES = sorted((Path(__file__).parent / "fixtures").glob("home-v*.tar.gz"))


@pytest.fixture(params=_HOMES, ids=lambda path: path.name.removesuffix(".tar.gz"))
def old_home(home: Path, request: pytest.FixtureRequest) -> Home:
    """A home of older code, where it lies now: overlays name what they lie on by its whole path."""
    with tarfile.open(request.param) as archive:
        archive.extractall(home, filter="data")
    made_at = (home / "made-at").read_bytes()
    now_at = os.fsencode(home)
    assert len(made_at) == len(now_at)
    for disk in home.rglob("*.qcow2"):
        disk.write_bytes(disk.read_bytes().replace(made_at, now_at))
    return Home.of_this_user()


@pytest.fixture
def old(old_home: Home, engine: FakeEngine, asked: list[str]) -> Iterator[Manager]:
    with Manager(old_home, lambda _requested: engine) as manager:
        yield manager


def test_its_store_is_brought_to_this_version(old_home: Home) -> None:
    store = Store(old_home.store)
    with sqlite3.connect(old_home.store) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (VERSION,)
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    database.close()
    assert [record.name for record in store.machines()] == [
        "web",
        "child",
        "asleep",
        "new",
        "pool-0",
    ]
    events = store.events()
    assert (len(events), events[0].words, events[2].words[:8]) == (27, "blank", "process ")
    store.tell(store.machines()[0], "said", "something")
    assert store.events()[-1].number == 28
    assert [row.image for row in store.pools()] == ["blank"]
    assert [record.name for record in store.members("pool")] == ["pool-0"]


def test_its_layers_are_removed_once_nothing_needs_them(old: Manager, old_home: Home) -> None:
    layers = old_home.layers
    found = {path.name for path in layers.iterdir()}
    assert len(found) == 6
    old.create(machine_spec(name="more", image="blank", memory="64M")).remove()
    assert {path.name for path in layers.iterdir()} == found
    old.get("web").remove()
    assert {path.name for path in layers.iterdir()} == found
    for name in ("before", "disk-alone"):
        old.remove_snapshot(name)
    # The child lies on what was frozen for it, and on what was frozen before.
    assert len([*layers.iterdir()]) == 4
    old.get("child").remove()
    assert [*layers.iterdir()] == []


def test_its_machines_snapshots_and_pools_are_used(old: Manager) -> None:
    web = old.get("web")
    web.start()
    assert old.snapshot("before").restore().state is State.RUNNING
    assert old.snapshot("before").restore_as("other").state is State.RUNNING
    assert old.snapshot("disk-alone").restore_as("third").state is State.RUNNING
    asleep = old.get("asleep")
    asleep.wake()
    assert asleep.state is State.RUNNING
    assert [child.state for child in web.fork(2)] == [State.RUNNING] * 2
    assert old.pool("pool").spec.image == "blank"


def test_its_image_is_kept_while_anything_is_made_of_it(old: Manager) -> None:
    with pytest.raises(ConflictError) as caught:
        old.remove_image("blank")
    for made in ("web", "asleep", "before", "disk-alone", "the pool pool"):
        assert made in caught.value.message
    for machine in old.machines():
        machine.remove(force=True)
    old.pool("pool").remove()
    with pytest.raises(ConflictError, match="the snapshot before, the snapshot disk-alone"):
        old.remove_image("blank")
    for name in ("before", "disk-alone"):
        old.remove_snapshot(name)
    old.remove_image("blank")
    assert [*old.images.list()] == []


def test_a_fork_that_was_being_made_is_incomplete(old_home: Home) -> None:
    with sqlite3.connect(old_home.store) as database:
        database.execute("UPDATE machines SET state = 'starting', started = NULL")
    database.close()
    store = Store(old_home.store)
    assert [record.name for record in store.incomplete()] == ["child"]


def test_a_snapshot_that_cannot_be_read_keeps_all_layers_and_images(
    old_home: Home, engine: FakeEngine
) -> None:
    with sqlite3.connect(old_home.store) as database:
        database.execute("UPDATE snapshots SET manifest = 'not json' WHERE name = 'before'")
    database.close()
    found = {path.name for path in old_home.layers.iterdir()}
    with Manager(old_home, lambda _requested: engine) as manager:
        for machine in manager.machines():
            machine.remove(force=True)
        manager.pool("pool").remove()
        manager.remove_snapshot("disk-alone")
        assert {path.name for path in old_home.layers.iterdir()} == found
        with pytest.raises(ConflictError, match="the snapshot before"):
            manager.remove_image("blank")
        manager.remove_snapshot("before")
        assert [*old_home.layers.iterdir()] == []
        manager.remove_image("blank")


def test_a_disk_that_cannot_be_read_may_lie_on_any_layer(
    old_home: Home, engine: FakeEngine
) -> None:
    asleep = next(each for each in old_home.machines.iterdir() if (each / "saved").exists())
    (asleep / "root.qcow2").write_bytes(b"not a disk")
    found = {path.name for path in old_home.layers.iterdir()}
    with Manager(old_home, lambda _requested: engine) as manager:
        for name in ("web", "child"):
            manager.get(name).remove()
        for name in ("before", "disk-alone"):
            manager.remove_snapshot(name)
        assert {path.name for path in old_home.layers.iterdir()} == found
        manager.get("asleep").remove(force=True)
        assert [*old_home.layers.iterdir()] == []


@pytest.mark.parametrize(
    "manifest",
    [
        '{"digest": "x", "data_layers": {"x": ["a"]}}',
        '{"digest": "x", "data_layers": {"x": "a\\u0000b"}}',
        '{"digest": "\\ud800"}',
        '{"digest": 5}',
        '{"digest": "x", "data_layers": {"x": "../../../etc/passwd"}}',
        "[" * 200_000,
        "[]",
    ],
)
def test_a_snapshot_that_makes_no_sense_stops_no_upgrade(old_home: Home, manifest: str) -> None:
    with sqlite3.connect(old_home.store) as database:
        database.execute("UPDATE snapshots SET manifest = ?", (manifest,))
    store = Store(old_home.store)
    layers = {path.stem for path in old_home.layers.glob("*.qcow2")}
    with sqlite3.connect(old_home.store) as database:
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
        assert database.execute("SELECT DISTINCT digest FROM snapshots").fetchall() == [(None,)]
        kept = {row[0] for row in database.execute("SELECT layer FROM snapshot_layers")}
    database.close()
    assert kept == layers
    store.close()
