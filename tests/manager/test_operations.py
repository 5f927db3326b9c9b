"""Long operations as rows: progress, results, errors, cancellation, killed processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sqlite3
import time
from pathlib import Path

import pytest
from tests.manager.conftest import FakeEngine

from cerne.client import Host
from cerne.errors import (
    CerneError,
    EngineError,
    NotFoundError,
    OperationCancelledError,
    StateError,
)
from cerne.images.parts import Parts
from cerne.manager import Home, Machine, Manager
from cerne.manager.operations import Kind, end_abandoned, recorded
from cerne.manager.store import OperationRow, OperationState, Store, Subject, working_on
from cerne.spec.machine import machine_spec


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store.sqlite")


def the_row(store: Store) -> OperationRow:
    (row,) = store.operations()
    return row


def test_its_progress_and_its_result_are_kept_and_its_caller_is_told_the_same(
    store: Store,
) -> None:
    told: list[tuple[str, int, int | None]] = []
    with recorded(
        store, Kind.IMAGE_BUILD, Subject.IMAGE, "tiny", lambda *said: told.append(said)
    ) as operation:
        begun = the_row(store)
        assert (begun.kind, begun.subject_kind, begun.subject) == ("image build", "image", "tiny")
        assert (begun.state, begun.ended, begun.error) == (OperationState.RUNNING, None, None)
        assert begun.process is not None
        assert begun.process.pid == os.getpid()
        operation("fetching", 5, 10)
        row = the_row(store)
        assert told == [(row.stage, row.done, row.total)] == [("fetching", 5, 10)]
        operation.result["image"] = "tiny"
    ended = the_row(store)
    assert (ended.state, ended.result) == (OperationState.SUCCEEDED, {"image": "tiny"})
    assert ended.ended is not None


def test_progress_is_not_written_more_often_than_some_times_a_second(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with recorded(store, Kind.IMAGE_BUILD, Subject.IMAGE, "tiny") as operation:
        operation("fetching", 1, 10)
        operation("fetching", 2, 10)
        assert the_row(store).done == 1
        now += 1
        operation("fetching", 3, 10)
        assert the_row(store).done == 3
        operation("unpacking", 0, None)
        assert the_row(store).stage == "unpacking"


@pytest.mark.parametrize(
    ("error", "state", "code"),
    [
        (EngineError("it broke", hint="mend it"), OperationState.FAILED, "engine"),
        (ValueError("a mistake"), OperationState.FAILED, "error"),
        (KeyboardInterrupt(), OperationState.CANCELLED, "interrupted"),
    ],
)
def test_its_error_is_kept_and_raised(
    store: Store, error: BaseException, state: OperationState, code: str
) -> None:
    with pytest.raises(type(error)), recorded(store, Kind.RUN, Subject.MACHINE, "web"):
        raise error
    row = the_row(store)
    assert row.error is not None
    assert (row.state, row.error["code"]) == (state, code)
    if isinstance(error, CerneError):
        assert (row.error["message"], row.error["hint"]) == ("it broke", "mend it")


def test_another_store_cancels_it_at_its_next_step(store: Store, tmp_path: Path) -> None:
    other = Store(tmp_path / "store.sqlite")
    with (
        pytest.raises(OperationCancelledError) as raised,
        recorded(store, Kind.IMAGE_BUILD, Subject.IMAGE, "tiny") as operation,
    ):
        operation("fetching", 0, None)
        other.cancel_operation(operation.id)
        assert the_row(store).cancel
        operation("unpacking", 0, None)
    assert operation.id in raised.value.message
    assert the_row(store).state is OperationState.CANCELLED
    with pytest.raises(StateError, match="has ended already: cancelled"):
        other.cancel_operation(operation.id)
    with pytest.raises(NotFoundError, match="no operation with the ID nosuch"):
        other.cancel_operation("nosuch")


def _work(path: Path) -> None:
    with recorded(Store(path), Kind.RUN, Subject.MACHINE, "web"):
        os.kill(os.getpid(), signal.SIGKILL)


def test_one_whose_process_was_killed_has_failed(store: Store, tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(
        target=_work, args=(tmp_path / "store.sqlite",)
    )
    process.start()
    process.join()
    assert the_row(store).state is OperationState.RUNNING
    end_abandoned(store)
    row = the_row(store)
    assert (row.state, row.error) == (
        OperationState.FAILED,
        {"code": "killed", "message": "its process was killed"},
    )


def test_those_that_go_on_are_left_alone(store: Store) -> None:
    with recorded(store, Kind.POOL_FILL, Subject.POOL, "web"):
        end_abandoned(store)
        assert the_row(store).state is OperationState.RUNNING


def test_old_and_superfluous_ones_go_but_none_that_goes_on(store: Store, tmp_path: Path) -> None:
    with recorded(store, Kind.IMAGE_BUILD, Subject.IMAGE, "first"):
        database = sqlite3.connect(tmp_path / "store.sqlite")
        values = "kind, subject_kind, subject, state, created, ended"
        database.executemany(
            f"INSERT INTO operations (id, {values})"
            " VALUES (?, 'run', 'machine', 'web', 'succeeded', ?2, ?2)",
            [("old", time.time() - 31 * 86400), *((f"n{i}", time.time()) for i in range(1100))],
        )
        database.commit()
        database.close()
        with recorded(store, Kind.RUN, Subject.MACHINE, "last"):
            rows = store.operations()
            assert len(rows) == 1001
            assert [rows[0].subject, rows[-1].subject] == ["first", "last"]
            assert "old" not in {row.id for row in rows}


def test_a_damaged_row_holds_up_no_other(store: Store, tmp_path: Path) -> None:
    with recorded(store, Kind.RUN, Subject.MACHINE, "web"):
        pass
    with sqlite3.connect(tmp_path / "store.sqlite") as database:
        database.execute("UPDATE operations SET state = 'odd', result = '{', error = '[]'")
    database.close()
    row = the_row(store)
    assert (row.state, row.result, row.error) == ("failed", {"text": "{"}, {"text": "[]"})


def test_what_is_done_is_done_where_its_end_cannot_be_written(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StateError("no")

    monkeypatch.setattr(Store, "end_operation", refuse)
    with recorded(store, Kind.RUN, Subject.MACHINE, "web"):
        pass


def test_long_work_of_a_manager_is_recorded(host: Host, machine: Machine, tmp_path: Path) -> None:
    raw = tmp_path / "other.raw"
    raw.write_bytes(bytes(1 << 20))
    host.import_image(str(raw), "other")
    host.run(machine_spec(name="runs", image="other", memory="64M"))
    snapshot = machine.snapshot("kept")
    snapshot.export(tmp_path / "kept.cerne")
    host.import_snapshot(tmp_path / "kept.cerne", "taken")
    snapshot.restore_as("again")
    snapshot.restore()
    pool = host.create_pool("ready", machine_spec(name="x", image="blank", memory="64M"), 1)
    pool.fill()
    rows = host.operations()
    assert [(row.kind, row.subject_kind, row.subject) for row in rows[:-1]] == [
        ("image import", "image", "other"),
        ("run", "machine", "runs"),
        ("snapshot create", "machine", "web"),
        ("snapshot export", "snapshot", "kept"),
        ("snapshot import", "snapshot", "taken"),
        ("snapshot restore", "snapshot", "kept"),
        ("snapshot restore", "snapshot", "kept"),
        ("pool fill", "pool", "ready"),
    ]
    assert {row.state for row in rows} == {OperationState.SUCCEEDED}
    assert rows[1].result == {"machine": "runs"}
    assert rows[7].result == {"made": "1"}
    assert host.operation(rows[2].id).result == {"snapshot": "kept"}


def test_a_run_that_is_cancelled_while_its_guest_boots_leaves_no_machine(
    manager: Manager,
) -> None:
    work = manager.home.images / "work"
    disk = work / "disk"
    disk.write_bytes(bytes(1 << 20))
    manager.images.add("mute", Parts(disk=disk, disk_size=1 << 20, agent=True), source="a test")
    stages: list[str] = []

    def cancel(what: str, done: int, total: int | None) -> None:
        stages.append(what)
        if len(stages) == 1:
            manager.cancel_operation(manager.operations()[-1].id)

    spec = machine_spec(name="web", image="mute", memory="64M")
    with pytest.raises(OperationCancelledError):
        manager.run(spec, cold=True, progress=cancel, keep_failed=True)
    assert set(stages) == {"booting web"}
    assert manager.machines() == []
    assert [(row.kind, row.state) for row in manager.operations()] == [("run", "cancelled")]


def test_what_is_done_for_an_operation_that_is_cancelled_is_cancelled_with_it(
    store: Store,
) -> None:
    with (
        pytest.raises(OperationCancelledError),
        recorded(store, Kind.POOL_FILL, Subject.POOL, "ready") as fill,
        recorded(store, Kind.RUN, Subject.MACHINE, "ready-1", fill) as run,
    ):
        store.cancel_operation(fill.id)
        run("booting ready-1", 0, None)
    assert {row.state for row in store.operations()} == {OperationState.CANCELLED}


def test_a_snapshot_that_is_cancelled_while_it_is_saved_leaves_nothing(
    manager: Manager, machine: Machine, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.start()
    save = engine.attach(machine._context.instance().record).__class__.save

    def save_and_cancel(*args: object, **kwargs: object) -> None:
        save(*args, **kwargs)  # type: ignore[arg-type]
        manager.cancel_operation(manager.operations()[-1].id)

    monkeypatch.setattr("tests.manager.conftest.FakeInstance.save", save_and_cancel)
    with pytest.raises(OperationCancelledError):
        machine.snapshot("kept")
    assert manager.snapshot_names() == []
    assert list(manager.home.snapshots.iterdir()) == []
    assert machine.state == "running"


def test_the_command_line_lists_inspects_and_cancels(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cerne.cli import operations

    manager = Manager(Home.of_this_user())
    with (
        pytest.raises(OperationCancelledError),
        recorded(manager._store, Kind.IMAGE_BUILD, Subject.IMAGE, "tiny") as operation,
    ):
        operation("fetching", 5, 10)
        operations.list_operations()
        assert "fetching 50%" in capsys.readouterr().out
        operations.cancel([operation.id])
        assert capsys.readouterr().out == f"{operation.id}\n"
        operation("unpacking", 0, None)
    operations.list_operations(json=True)
    (listed,) = json.loads(capsys.readouterr().out)
    assert (listed["state"], listed["error"]["code"]) == ("cancelled", "cancelled")
    assert (listed["pid"], listed["stage"]) == (None, "fetching")
    operations.inspect(operation.id)
    assert "was cancelled" in capsys.readouterr().out


def test_an_operation_waits_for_no_disk_and_every_other_change_does(store: Store) -> None:
    def level() -> int:
        return int(store._database.rows("PRAGMA synchronous")[0][0])

    normal, full = 1, 2
    with recorded(store, Kind.RUN, Subject.MACHINE, "web"):
        assert level() == normal
        with store._database.transaction():
            pass
        assert level() == full


def test_an_event_names_the_operation_of_which_it_is(host: Host, machine: Machine) -> None:
    host.run(machine_spec(name="runs", image="blank", memory="64M"))
    kept = machine.snapshot("kept")
    kept.restore_as("again")
    machine.remove()
    run, _, restore = host.operations()
    told: dict[str, set[str | None]] = {}
    for event in host.events():
        told.setdefault(event.name, set()).add(event.operation)
    assert told["runs"] == {run.id}
    assert told["again"] == {restore.id}
    # What takes no time is of no operation.
    assert None in told["web"]


def test_an_operation_within_another_has_its_own_events(store: Store) -> None:
    with recorded(store, Kind.POOL_FILL, Subject.POOL, "web") as outer:
        with recorded(store, Kind.RUN, Subject.MACHINE, "web") as inner:
            assert working_on.get() == inner.id
        assert working_on.get() == outer.id
        with pytest.raises(StateError), recorded(store, Kind.RUN, Subject.MACHINE, "web"):
            raise StateError("no")
        assert working_on.get() == outer.id
    assert working_on.get() is None
