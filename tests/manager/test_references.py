"""What refers to what, while several commands run at once and where the disk is full."""

from __future__ import annotations

import gc
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from tests.manager.conftest import FakeEngine
from tests.processes import opened

from cerne.errors import DamagedError, EngineError, HostError, InputError, StateError, StorageError
from cerne.images.files import new_file
from cerne.manager import Home, Machine, Manager, State
from cerne.manager import home as home_module
from cerne.manager.lock import held, is_held
from cerne.manager.machines.machine import Snapshot
from cerne.manager.store import Record, Store
from cerne.manager.store.migrations import MIGRATIONS
from cerne.spec.machine import machine_spec
from cerne.spec.names import check_name


def test_layers_are_collected_by_what_is_kept_under_their_lock(
    manager: Manager, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.start()
    machine.snapshot("one")
    seen: list[bool] = []
    has_needless_layers = Store.has_needless_layers

    def looked_at(store: Store, others: Iterable[str]) -> bool:
        seen.append(is_held(manager.home.layers_lock))
        return has_needless_layers(store, others)

    monkeypatch.setattr(Store, "has_needless_layers", looked_at)
    machine.snapshot("two").remove()
    assert seen
    assert all(seen)


def test_imports_keep_their_layers_beside_creations_and_removals(
    manager: Manager, machine: Machine, engine: FakeEngine, tmp_path: Path
) -> None:
    file = tmp_path / "one.cerne"
    machine.snapshot("one").export(file)
    done = threading.Event()

    def others() -> None:
        own = Manager(manager.home, lambda _requested: engine)
        number = 0
        while not done.is_set():
            number += 1
            spec = machine_spec(name=f"n-{number}", image="blank", memory="64M")
            own.create(spec).remove()

    def imports(first: int) -> None:
        own = Manager(manager.home, lambda _requested: engine)
        for number in range(first, first + 8):
            own.import_snapshot(file, f"i-{number}")

    with ThreadPoolExecutor() as workers:
        disturbing = workers.submit(others)
        importing = [workers.submit(imports, first) for first in (0, 10)]
        try:
            for each in importing:
                each.result()
        finally:
            done.set()
        disturbing.result()
    layers = [snapshot.layer for snapshot in manager.snapshots()]
    assert len(layers) == 17
    assert all(layer is not None and layer.exists() for layer in layers)


def test_names_are_made_up_for_each(
    manager: Manager, machine: Machine, engine: FakeEngine, asked: list[str]
) -> None:
    machine.start()

    def other() -> Machine:
        return Manager(manager.home, lambda _requested: engine).get("web")

    with ThreadPoolExecutor() as workers:
        kept = [workers.submit(other().snapshot) for _ in range(5)]
        forked = [workers.submit(other().fork) for _ in range(3)]
        names = {each.result().name for each in kept}
        children = {each.result()[0].name for each in forked}
    assert names == {f"web-{number}" for number in range(1, 6)}
    assert children == {"web-1", "web-2", "web-3"}


def test_a_name_is_found_before_an_id(home: Path, new_record: Callable[[str], Record]) -> None:
    store = Store(home / "store.sqlite")
    # Such names were allowed once. Whichever row comes first, the one of this name is meant.
    for one, other in (("000000000001", "000000000002"), ("00000000000b", "00000000000a")):
        store.add(replace(new_record(f"first-{one}"), id=one))
        store.add(replace(new_record(one), id=other))
        found = store.find(one)
        assert found is not None
        assert found.id == other
        of_id = store.find_id(one)
        assert of_id is not None
        assert of_id.name == f"first-{one}"


def test_what_looks_like_an_id_is_no_name() -> None:
    with pytest.raises(InputError, match="looks like an ID"):
        check_name("0123456789ab")
    assert check_name("0123456789a") == "0123456789a"


def _fill(place: Path) -> None:
    with (place / "filler").open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue


def test_on_a_full_disk_machines_are_seen_stopped_and_removed(
    small_home: Home, engine: FakeEngine, asked: list[str], tmp_path: Path
) -> None:
    manager = Manager(small_home, lambda _requested: engine)
    raw = tmp_path / "blank.raw"
    raw.write_bytes(bytes(1 << 20))
    manager.images.import_(str(raw), "blank")
    for name in ("a", "b"):
        machine = manager.create(machine_spec(name=name, image="blank", memory="64M"))
        machine.start()
        machine.snapshot(f"of-{name}")
    manager.close()
    _fill(small_home.data)
    reserve = small_home.data / "store.reserve"
    for _ in range(2):
        with Manager(small_home, lambda _requested: engine) as other:
            assert [each.state for each in other.machines()] == [State.RUNNING, State.RUNNING]
            assert len(other.snapshots()) == 2
    assert reserve.exists()
    with Manager(small_home, lambda _requested: engine) as other:
        other.get("a").kill()
        other.get("a").remove()
        other.snapshot("of-a").remove()
        other.get("b").stop(0.1)
        assert other.get("b").state is State.STOPPED
    (small_home.data / "filler").unlink()
    with Manager(small_home, lambda _requested: engine) as other:
        other.create(machine_spec(name="c", image="blank", memory="64M"))
    assert reserve.stat().st_blocks * 512 >= 1 << 20


def test_a_machine_is_seen_and_ended_where_not_a_byte_can_be_written(
    small_home: Home, engine: FakeEngine, tmp_path: Path
) -> None:
    manager = Manager(small_home, lambda _requested: engine)
    raw = tmp_path / "blank.raw"
    raw.write_bytes(bytes(1 << 20))
    manager.images.import_(str(raw), "blank")
    machine = manager.create(machine_spec(name="a", image="blank", memory="64M"))
    machine.start()
    manager.close()
    # What a machine that fills the disk does with all that is given up.
    (small_home.data / "store.reserve").unlink()
    _fill(small_home.data)
    with Manager(small_home, lambda _requested: engine) as other:
        (seen,) = other.machines()
        process = seen.record.process
        assert process is not None
        with pytest.raises(StorageError):
            seen.kill()
        assert not process.alive()
    (small_home.data / "filler").unlink()
    with Manager(small_home, lambda _requested: engine) as other:
        other.get("a").remove()


def test_a_closed_manager_keeps_no_descriptor_and_says_that_it_is_closed(
    home: Path, engine: FakeEngine
) -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with Manager(Home.of_this_user(), lambda _requested: engine) as manager:
        assert manager.machines() == []
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    with pytest.raises(StateError, match="was closed"):
        manager.machines()


def test_a_store_that_was_upgraded_meanwhile_is_not_written(
    home: Path, new_record: Callable[[str], Record]
) -> None:
    store = Store(home / "store.sqlite")
    with sqlite3.connect(home / "store.sqlite") as newer:
        newer.execute("PRAGMA user_version = 99")
    with pytest.raises(DamagedError, match="another version"):
        store.add(new_record("a"))
    newer.close()
    assert store.machines() == []


def test_an_older_store_is_read(home: Path) -> None:
    # What Cerne wrote until 28 November.
    with sqlite3.connect(home / "store.sqlite") as database:
        for migration in MIGRATIONS[:3]:
            migration(database, home)
        database.execute(
            "INSERT INTO machines (id, name, spec, image, digest, cpus, memory, state, pid,"
            " start_time, boot_id, created) VALUES"
            " ('0123456789ab', 'a', '{}', 'tiny', 'sha256:0', 1, 1, 'running', 1, 2, 'boot', 3)"
        )
        database.execute("PRAGMA user_version = 3")
    database.close()
    (found,) = Store(home / "store.sqlite").machines()
    assert (found.name, found.state, found.untold) == ("a", State.RUNNING, "")


def test_a_lock_that_was_removed_meanwhile_is_taken_anew(
    tmp_path: Path, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    path = tmp_path / "a.lock"
    with ThreadPoolExecutor() as workers:
        with held(path, "first", "a"):
            waiting = workers.submit(_holds, path)
            eventually(lambda: opened(os.getpid()).count(str(path)) == 2)
            path.unlink()
        assert waiting.result()


def _holds(path: Path) -> bool:
    with held(path, "second", "a"):
        return is_held(path)


def test_locks_of_what_is_not_there_are_swept(manager: Manager, machine: Machine) -> None:
    stray = manager.home.machine_lock("0123456789ab")
    stray.touch()
    own = manager.home.machine_lock(machine.id)
    own.touch()
    manager.create(machine_spec(name="other", image="blank", memory="64M"))
    assert not stray.exists()
    assert own.exists()


@pytest.mark.parametrize("flag", [os.O_TMPFILE, os.O_DIRECTORY | os.O_EXCL])
def test_a_new_file_is_there_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: int
) -> None:
    # The second is answered as by a file system that makes no files without names.
    monkeypatch.setattr("os.O_TMPFILE", flag)
    with new_file(tmp_path / "a") as file:
        file.write(b"all of it")
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a").read_bytes() == b"all of it"
    with pytest.raises(FileExistsError), new_file(tmp_path / "a") as file:
        file.write(b"other")
    with pytest.raises(KeyboardInterrupt), new_file(tmp_path / "b") as file:
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"all of it"


@pytest.mark.parametrize("wrong", ["link", "open", "another's"])
def test_a_directory_that_another_could_change_is_refused(
    short_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str, root: None
) -> None:
    monkeypatch.delenv("CERNE_HOME", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(short_path / "data"))
    monkeypatch.setattr(home_module, "_is_root", lambda: False)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(short_path))
    place = short_path / f"cerne-{os.geteuid()}"
    if wrong == "link":
        (short_path / "elsewhere").mkdir()
        place.symlink_to(short_path / "elsewhere")
    else:
        place.mkdir()
        place.chmod(0o777 if wrong == "open" else 0o700)
    if wrong == "another's":
        os.chown(place, 65534, 65534)
    with pytest.raises(HostError, match="only you may change"):
        Home.of_this_user()


def test_a_block_of_the_library_keeps_no_descriptor(
    manager: Manager, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cerne.client.run as run_module

    monkeypatch.setattr(
        run_module, "LocalHost", lambda: Manager(manager.home, lambda _requested: engine)
    )
    gc.disable()
    try:
        counts = []
        for _ in range(3):
            with run_module.run("blank", memory="64M") as machine:
                assert machine.state is State.RUNNING
            counts.append(len(os.listdir("/proc/self/fd")))  # noqa: PTH208
    finally:
        gc.enable()
    # What the first one loads may stay open; nothing is added by another.
    assert counts[1] == counts[2] == counts[0]


def test_a_restore_that_fails_leaves_no_reference(
    manager: Manager, machine: Machine, engine: FakeEngine
) -> None:
    machine.start()
    before = machine.snapshot("before")
    later = machine.snapshot("later")
    engine.failure = EngineError("it broke")
    with pytest.raises(EngineError):
        before.restore()
    assert manager._store.layers_of(machine.id) == {_layer(later)}
    before.remove()
    later.remove()
    # What the machine's disk lies on, and what lies under that.
    assert {path.stem for path in manager.home.layers.iterdir()} == {_layer(before), _layer(later)}
    machine.remove()
    assert [*manager.home.layers.iterdir()] == []


def _layer(snapshot: Snapshot) -> str:
    assert snapshot.layer is not None
    return snapshot.layer.stem


def test_layers_without_rows_are_known_by_the_disks_on_them(
    manager: Manager, machine: Machine
) -> None:
    # As of a store that was taken back from a copy, and of an older command that was at work.
    machine.start()
    layer = _layer(machine.snapshot("one"))
    with manager._store._database.transaction() as connection:
        for table in ("snapshot_layers", "machine_layers", "snapshots", "layers"):
            connection.execute(f"DELETE FROM {table}")
    machine.snapshot("two")
    manager.create(machine_spec(name="next", image="blank", memory="64M"))
    assert layer in manager._store.known_layers()
    assert manager.home.layer(layer).exists()
    machine.kill()
    machine.remove()
    manager.remove_snapshot("two")
    assert [*manager.home.layers.iterdir()] == []
