"""Those who wait for a change of the store are woken, and do not look again and again."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cerne.manager import Home, Manager
from cerne.manager.store import Record, Store

NewRecord = Callable[[str], Record]


def test_a_change_of_another_process_wakes(tmp_path: Path, new_record: NewRecord) -> None:
    store = Store(tmp_path / "store.sqlite")
    with store.changes() as changes:
        child = os.fork()
        if child == 0:
            Store(tmp_path / "store.sqlite").add(new_record("web"))
            os._exit(0)
        # Without an end: a test that hangs here has found a fault.
        changes.wait()
        os.waitpid(child, 0)
        assert store.find("web") is not None


def test_a_change_before_the_wait_is_not_missed(tmp_path: Path, new_record: NewRecord) -> None:
    store = Store(tmp_path / "store.sqlite")
    with store.changes() as changes:
        for number in range(3):
            store.add(new_record(f"m{number}"))
        changes.wait()
        ended = threading.Event()

        def wait_again() -> None:
            changes.wait()
            ended.set()

        waiting = threading.Thread(target=wait_again)
        waiting.start()
        assert not ended.wait(0.05)
        store.add(new_record("last"))
        waiting.join()


def test_what_a_killed_process_waited_with_is_removed(
    tmp_path: Path, new_record: NewRecord
) -> None:
    store = Store(tmp_path / "store.sqlite")
    child = subprocess.Popen(
        [sys.executable, "-c", _WAITS, str(tmp_path / "store.sqlite")], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"waits\n"
    waiters = tmp_path / "waiters"
    store.add(new_record("first"))
    assert len([*waiters.iterdir()]) == 1
    child.send_signal(signal.SIGKILL)
    child.communicate()
    store.add(new_record("second"))
    assert [*waiters.iterdir()] == []


_WAITS = """
import sys, time
from pathlib import Path
from cerne.manager.store import Store
with Store(Path(sys.argv[1])).changes() as changes:
    print("waits", flush=True)
    time.sleep(1000)
"""


def test_what_is_no_fifo_keeps_nobody_asleep(tmp_path: Path, new_record: NewRecord) -> None:
    store = Store(tmp_path / "store.sqlite")
    waiters, other = tmp_path / "waiters", tmp_path / "other"
    other.write_bytes(b"kept")
    with store.changes() as changes:
        (waiters / "000000000000").mkdir()
        (waiters / "000000000001").symlink_to(other)
        (waiters / "000000000002").write_bytes(b"kept")
        store.add(new_record("first"))
        poll = select.poll()
        poll.register(changes.fileno(), select.POLLIN)
        assert poll.poll(0) != []
    assert other.read_bytes() == b"kept"
    assert (waiters / "000000000002").read_bytes() == b"kept"


def test_one_who_waits_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.sqlite")
    with store.changes() as changes:
        fifo = changes.fileno()
        os.fstat(fifo)
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(fifo)
    assert [*(tmp_path / "waiters").iterdir()] == []


def test_where_no_fifo_can_be_made_one_looks_again(
    tmp_path: Path, new_record: NewRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store.sqlite")

    def full(path: Path, mode: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.mkfifo", full)
    with store.changes() as changes:
        store.add(new_record("web"))
        changes.wait()
        with pytest.raises(OSError, match="making a FIFO failed"):
            changes.fileno()


def test_events_are_followed_as_they_happen(home: Path, new_record: NewRecord) -> None:
    with Manager() as manager:
        record = new_record("web")
        manager._store._require_image = lambda _digest: None
        manager._store.add(record)
        events = manager.follow_events(machine_id=record.id)
        assert next(events).kind == "created"
        later = threading.Timer(0.05, manager._store.tell, (record, "said", "something"))
        later.start()
        assert next(events).words == "something"
        events.close()
        assert [*manager.home.waiters.iterdir()] == []


def test_the_command_prints_events_as_they_happen(home: Path, new_record: NewRecord) -> None:
    store = Store(home / "store.sqlite", waiters=Home.of_this_user().waiters)
    store.add(new_record("web"))
    following = subprocess.Popen(
        [sys.executable, "-m", "cerne", "events", "--follow", "--json"], stdout=subprocess.PIPE
    )
    assert following.stdout is not None
    said = [json.loads(following.stdout.readline())]
    store.add(new_record("other"))
    said.append(json.loads(following.stdout.readline()))
    following.terminate()
    following.communicate()
    assert [(event["name"], event["kind"], event["detail"]) for event in said] == [
        ("web", "created", "tiny"),
        ("other", "created", "tiny"),
    ]
    assert [event["operation"] for event in said] == [None, None]
