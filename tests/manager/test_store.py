"""The store: transactions, events, and what it does with damage."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cerne.errors import CapacityError, ConflictError, DamagedError, NotFoundError, StorageError
from cerne.host.process import ProcessIdentity
from cerne.manager.store import PoolRow, Record, SnapshotRow, State, Store
from cerne.manager.store.migrations import MIGRATIONS, VERSION
from cerne.manager.store.promises import Claim, Resource, Supply
from cerne.units import GIB, MIB

NewRecord = Callable[[str], Record]


def _claim(record: Record, memory: int) -> Claim:
    """What a machine claims on a host that has so much memory for machines."""
    return Claim({Resource.MEMORY: record.memory}, {Resource.MEMORY: Supply(memory)})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store.sqlite")


def test_what_was_added_is_found_again(store: Store, new_record: NewRecord) -> None:
    record = new_record("web")
    store.add(record)
    assert store.find("web") == record
    assert store.find(record.id) == record
    assert store.get(record.id) == record
    assert store.machines() == [record]
    assert store.find("other") is None


def test_it_outlives_the_object(tmp_path: Path, new_record: NewRecord) -> None:
    first = Store(tmp_path / "store.sqlite")
    first.add(new_record("web"))
    first.close()
    assert Store(tmp_path / "store.sqlite").find("web") is not None


def test_a_name_is_given_once(store: Store, new_record: NewRecord) -> None:
    store.add(new_record("web"))
    with pytest.raises(ConflictError) as caught:
        store.add(new_record("web"))
    assert "cerne rm web" in caught.value.hint
    assert len(store.machines()) == 1
    assert [event.kind for event in store.events()] == ["created"]


def test_a_name_in_use_cannot_be_taken_by_renaming(store: Store, new_record: NewRecord) -> None:
    store.add(new_record("a"))
    second = new_record("b")
    store.add(second)
    with pytest.raises(ConflictError):
        store.rename(second, "a", "{}")
    assert store.get(second.id).name == "b"


def test_every_change_is_an_event(store: Store, new_record: NewRecord) -> None:
    record = new_record("web")
    store.add(record)
    store.reserve(record, "qemu", _claim(record, GIB))
    process = ProcessIdentity(1, 2, "boot")
    assert store.set_process(record, process).process == process
    assert store.set_ready(record).ready is not None
    stopped = store.change(store.get(record.id), State.STOPPED, reason="shut down")
    assert (stopped.process, stopped.ready, stopped.reason) == (None, None, "shut down")
    store.remove(record)
    kinds = [event.kind for event in store.events()]
    assert kinds == ["created", "starting", "started", "ready", "stopped", "removed"]
    assert store.events(after=4)[0].kind == "stopped"
    assert store.events(subject="other") == []


def test_memory_is_promised_once(store: Store, new_record: NewRecord) -> None:
    first, second = new_record("a"), new_record("b")
    store.add(first)
    store.add(second)
    store.reserve(first, "qemu", _claim(first, 600 * MIB))
    with pytest.raises(CapacityError) as caught:
        store.reserve(second, "qemu", _claim(second, 600 * MIB))
    assert caught.value.message == (
        "b needs 512M of memory, which is 424M more than is free: 88M of 600M; promised to a 512M"
    )
    assert "cerne stop a" in caught.value.hint
    assert "cerne capacity --overcommit memory=1.71" in caught.value.hint
    assert store.promised_to(second) == {}
    assert store.get(second.id).state is State.DEFINED
    store.change(first, State.STOPPED)
    store.reserve(second, "qemu", _claim(second, 600 * MIB))
    assert store.get(second.id).state is State.STARTING


def test_changing_a_removed_machine_is_refused(store: Store, new_record: NewRecord) -> None:
    record = new_record("web")
    store.add(record)
    store.remove(record)
    with pytest.raises(NotFoundError):
        store.change(record, State.STOPPED)
    with pytest.raises(NotFoundError):
        store.get(record.id)


def test_a_file_that_is_no_store_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    path.write_bytes(b"not a database, whatever its name says" * 100)
    with pytest.raises(DamagedError) as caught:
        Store(path)
    assert str(path) in caught.value.hint


def test_a_store_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(DamagedError):
        Store(path)


def test_a_store_of_the_first_version_is_upgraded(tmp_path: Path, new_record: NewRecord) -> None:
    path = tmp_path / "store.sqlite"
    with sqlite3.connect(path) as database:
        MIGRATIONS[0](database, tmp_path)
        database.execute(
            "INSERT INTO machines (id, name, spec, image, digest, cpus, memory, state, created)"
            " VALUES ('0', 'old', '{}', 'tiny', 'sha256:0', 1, 1, 'stopped', 1.5)"
        )
        database.execute("PRAGMA user_version = 1")
    store = Store(path)
    (old,) = store.machines()
    assert (old.name, old.parent, old.state) == ("old", "", State.STOPPED)
    assert store.snapshots() == []
    assert Store(path).machines() == [old]


def test_forks_are_added_all_or_none(store: Store, new_record: NewRecord) -> None:
    forks = [
        replace(new_record(name), state=State.STARTING, incomplete=True, memory=300 * MIB)
        for name in ("a", "b", "c")
    ]
    with pytest.raises(CapacityError):
        store.add_incomplete([(fork, _claim(fork, 800 * MIB)) for fork in forks])
    assert store.machines() == []
    store.add_incomplete([(fork, _claim(fork, 800 * MIB)) for fork in forks[:2]])
    assert [record.incomplete for record in store.machines()] == [True, True]
    with pytest.raises(ConflictError):
        store.add_incomplete(
            [(fork, _claim(fork, 4 * GIB)) for fork in (forks[2], new_record("a"))]
        )
    assert len(store.machines()) == 2
    assert not store.set_process(forks[0], ProcessIdentity(1, 2, "boot")).incomplete


def test_snapshots_are_found_by_name_and_by_id(store: Store, new_record: NewRecord) -> None:
    record = new_record("web")
    store.add(record)
    row = SnapshotRow("0123456789ab", "before", "", "{}", 1.5)
    store.add_snapshot(row, record)
    assert store.find_snapshot("before") == row == store.find_snapshot(row.id)
    with pytest.raises(ConflictError) as caught:
        store.add_snapshot(replace(row, id="ba9876543210"), record)
    assert "cerne snapshot rm before" in caught.value.hint
    store.remove_snapshot(row)
    assert store.snapshots() == []


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        Store(tmp_path / "missing" / "store.sqlite")
    assert "missing" in caught.value.message


def test_a_full_disk_and_a_read_only_one_are_said(
    store: Store, new_record: NewRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = store._database._connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageError, match=f"the disk of {tmp_path} is full"):
        for number in range(1000):
            store.add(new_record(f"m{number}"))
    read_only = os.statvfs_result((*os.statvfs(tmp_path)[:8], os.ST_RDONLY, 255))
    monkeypatch.setattr("cerne.manager.store.database.os.statvfs", lambda _path: read_only)
    with pytest.raises(StorageError, match=f"the file system of {tmp_path}/missing is read-only"):
        Store(tmp_path / "missing" / "store.sqlite")


def test_threads_may_share_a_store(store: Store, new_record: NewRecord) -> None:
    threads = [
        threading.Thread(target=store.add, args=(new_record(f"m{number}"),)) for number in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.machines()) == 20


def test_a_process_killed_inside_a_transaction_leaves_the_store_whole(
    tmp_path: Path, new_record: NewRecord
) -> None:
    path = tmp_path / "store.sqlite"
    store = Store(path)
    record = new_record("web")
    store.add(record)
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED_IN_A_TRANSACTION, str(path)], check=False
    )
    assert killed.returncode == -9
    assert store.get(record.id).state is State.DEFINED
    store.change(record, State.STOPPED)


_KILLED_IN_A_TRANSACTION = """
import os, signal, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("BEGIN IMMEDIATE")
database.execute("UPDATE machines SET state = 'failed'")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_older_process_writes_nothing_into_a_newer_store(
    tmp_path: Path, new_record: NewRecord
) -> None:
    older, newer = (Store(tmp_path / "store.sqlite") for _ in range(2))
    record = new_record("web")
    older.add(record)
    with newer._database.transaction() as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    writes: list[Callable[[], object]] = [
        lambda: older.add(new_record("other")),
        lambda: older.change(record, State.FAILED),
        lambda: older.reserve(record, "qemu", _claim(record, GIB)),
        lambda: older.rename(record, "other", "{}"),
        lambda: older.add_snapshot(SnapshotRow("0123456789ab", "a", "", "{}", 1.5)),
        lambda: older.remove(record),
    ]
    for write in writes:
        with pytest.raises(DamagedError, match="another version"):
            write()
    assert older.machines() == newer.machines() == [record]
    assert [event.kind for event in older.events()] == ["created"]


def test_what_is_referred_to_is_not_forgotten(store: Store, new_record: NewRecord) -> None:
    record = new_record("web")
    store.add(record)
    store.add_layers({"lower": None}, record.id)
    store.add_layers({"upper": "lower"}, record.id)
    store.drop_layers_of(record.id, ["lower"])
    for what in ("images", "layers WHERE id = 'lower'", "layers WHERE id = 'upper'"):
        with (
            pytest.raises(ConflictError, match="FOREIGN KEY"),
            store._database.transaction() as own,
        ):
            own.execute(f"DELETE FROM {what}")
    assert not store.has_needless_layers([])
    store.remove(record)
    with store.without_needless_layers(["upper"]) as left:
        assert left == {"upper", "lower"}
    with store.without_needless_layers(["lower"]) as left:
        assert left == {"lower"}


def test_layers_are_forgotten_once_their_files_are_gone(
    store: Store, new_record: NewRecord
) -> None:
    store.add_layers({"one": None})
    with pytest.raises(OSError, match="stuck"), store.without_needless_layers([]) as left:
        assert left == frozenset()
        raise OSError("stuck")
    assert store.known_layers() == {"one"}


def test_a_pool_forgets_a_machine_that_is_removed(store: Store, new_record: NewRecord) -> None:
    record = new_record("web")
    store.add(record)
    store.add_pool(PoolRow("p", "tiny", "{}", 1, 1.5))
    store.join_pool(record, "p")
    assert store.members("p") == [record]
    store.remove(record)
    assert store.members("p") == []


def test_each_change_counts_up_the_generation(store: Store, new_record: NewRecord) -> None:
    record = new_record("web")
    store.add(record)
    generations = [
        store.get(record.id).generation,
        store.begin(record, "pause").generation,
        store.change(record, State.PAUSED).generation,
        store.set_ready(record).generation,
    ]
    assert generations == [1, 2, 3, 4]


def test_events_are_kept_by_age_and_by_number_for_each_subject(
    store: Store, new_record: NewRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet, busy = new_record("quiet"), new_record("busy")
    store.add(quiet)
    store.add(busy)
    monkeypatch.setattr("cerne.manager.store.events._KEPT_OF_SUBJECT", 3)
    for number in range(5):
        store.tell(busy, "said", str(number))
    assert [event.words for event in store.events(subject=busy.id)] == ["2", "3", "4"]
    assert [event.kind for event in store.events(subject=quiet.id)] == ["created"]
    with store._database.transaction() as connection:
        connection.execute("UPDATE events SET time = time - 31 * 86400 WHERE number = 1")
    store.tell(busy, "said", "5")
    assert store.events(subject=quiet.id) == []


def test_an_event_that_is_damaged_hides_no_other(store: Store, new_record: NewRecord) -> None:
    store.add(new_record("web"))
    store.add(new_record("other"))
    with store._database.transaction() as connection:
        connection.execute("UPDATE events SET detail = 'no json' WHERE number = 1")
    assert [event.words for event in store.events()] == ["no json", "tiny"]


def test_what_clashes_with_a_row_is_no_damage(store: Store) -> None:
    with (
        pytest.raises(ConflictError, match="another command"),
        store._database.transaction() as connection,
    ):
        connection.execute("INSERT INTO pool_members (machine, pool) VALUES ('none', 'none')")


def test_the_files_of_a_store_are_its_owners_alone(tmp_path: Path, new_record: NewRecord) -> None:
    path = tmp_path / "open.sqlite"

    def modes() -> set[int]:
        return {each.stat().st_mode & 0o777 for each in tmp_path.glob("open.sqlite*")}

    store = Store(path)
    store._require_image = lambda _digest: None
    store.add(new_record("web"))
    assert modes() == {0o600}
    for each in tmp_path.glob("open.sqlite*"):
        # As an older Cerne made them.
        each.chmod(0o644)
    again = Store(path)
    assert [record.name for record in again.machines()] == ["web"]
    assert modes() == {0o600}
