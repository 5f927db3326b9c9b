"""The ledger of the host: homes see what others promise, and hostile files count for nothing."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.waiting import PATIENCE

from cerne.host.ledger import HostLedger, Published
from cerne.host.members import MACHINE, Members, start_member
from cerne.host.process import ProcessIdentity, boot_id
from cerne.units import GIB

_USER = 54321


@pytest.fixture
def process() -> Iterator[ProcessIdentity]:
    """A machine's process."""
    with subprocess.Popen(["sleep", "600"]) as running:
        found = ProcessIdentity.of(running.pid)
        assert found is not None
        yield found
        running.kill()


@pytest.fixture
def base(short_path: Path) -> Path:
    short_path.chmod(0o755)
    return short_path / "ledger"


@pytest.fixture
def home(base: Path) -> Callable[[str], HostLedger]:
    """Makes the ledger as a home sees it."""
    for each in ("a", "b", "theirs"):
        (base.parent / each).mkdir()

    def made(name: str) -> HostLedger:
        return HostLedger(base.parent / name, base.parent / name / "run/m", base)

    return made


Home = Callable[[str], HostLedger]

WEB = Published("web", 500, GIB, None)


def _names(ledger: HostLedger) -> list[str]:
    return sorted(each.name for each in ledger.others())


def test_a_promise_is_seen_as_long_as_the_process_runs(
    home: Home, process: ProcessIdentity, base: Path, root: None
) -> None:
    a, b = home("a"), home("b")
    a.publish("1", replace(WEB, process=process))
    (seen,) = b.others()
    assert (seen.name, seen.cpu, seen.memory, seen.user) == ("web", 500, GIB, 0)
    assert seen.home == str((base.parent / "a").resolve())
    assert a.others() == []
    subprocess.run(["kill", "-KILL", str(process.pid)], check=True)
    process.wait(PATIENCE)
    assert b.others() == []


def test_a_promise_that_is_withdrawn_is_not_seen(home: Home, base: Path, root: None) -> None:
    a, b = home("a"), home("b")
    a.publish("1", WEB)
    assert _names(b) == ["web"]
    assert a.published("1")
    a.withdraw("1")
    assert _names(b) == []
    assert not a.published("1")
    # A home that is gone leaves nothing.
    assert [*(base / "root").iterdir()] == []
    a.publish("2", WEB)
    assert _names(b) == ["web"]


def _in_child(function: Callable[[], object], user: int = 0) -> int:
    """Run a function in a process that is killed after it, perhaps of another user."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if user:
                os.setgroups([])
                os.setgid(user)
                os.setuid(user)
            status = 0 if function() in (None, True) else 3
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_command_that_is_killed_before_the_machine_runs_leaves_no_promise(
    home: Home, root: None
) -> None:
    assert _in_child(lambda: home("a").publish("1", WEB)) == 0
    assert _names(home("b")) == []


def test_a_command_that_is_killed_after_it_started_the_machine_leaves_its_promise(
    home: Home, base: Path, root: None
) -> None:
    runtime = base.parent / "a/run/m/1"
    runtime.mkdir(parents=True)
    started = start_member(Members(runtime), MACHINE, ["sleep", "600"], [])
    try:
        assert _in_child(lambda: home("a").publish("1", WEB)) == 0
        assert _names(home("b")) == ["web"]
    finally:
        started.kill()
        started.wait()
    assert _names(home("b")) == []


def test_users_and_root_see_each_other(home: Home, base: Path, root: None) -> None:
    a = home("a")
    a.publish("1", WEB)
    assert a.why_not == ""
    reading, writing = os.pipe()

    def of_user() -> bool:
        user = home("theirs")
        user.publish("1", replace(WEB, name="theirs"))
        os.write(writing, b".")
        os.read(reading_end, 1)
        return user.why_not == "" and _names(user) == ["web"]

    reading_end, ending = os.pipe()
    child = os.fork()
    if child == 0:
        os._exit(_in_child(of_user, _USER))
    os.read(reading, 1)
    (seen,) = a.others()
    assert (seen.name, seen.user, seen.trusted, seen.user_name) == (
        *("theirs", _USER),
        *(False, str(_USER)),
    )
    os.write(ending, b".")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    for descriptor in (reading, writing, reading_end, ending):
        os.close(descriptor)
    # The command of the user has ended, and no process of the machine is known.
    assert a.others() == []


def test_a_user_without_the_ledger_is_told_why(home: Home, base: Path, root: None) -> None:
    assert (
        _in_child(lambda: home("theirs").why_not.startswith("root has not used Cerne"), _USER) == 0
    )
    base.mkdir()
    os.chown(base, _USER, _USER)
    assert "another user than root may change it" in home("a").why_not
    home("a").publish("1", WEB)
    assert [*base.rglob("1")] == []


def _file_of_user(base: Path, text: bytes, owner: int = _USER) -> Path:
    directory = base / "users" / f"{_USER}-0"
    directory.mkdir(exist_ok=True)
    file = directory / "1"
    file.unlink(missing_ok=True)
    file.write_bytes(text)
    os.chown(directory, _USER, _USER)
    os.chown(file, owner, owner)
    return file


def _said(running: ProcessIdentity, **values: object) -> bytes:
    identity = [running.pid, running.start_time]
    said = {"name": "x", "cpu": 0, "memory": GIB, "home": "/h", "runtime": "/r", "boot": boot_id()}
    return json.dumps({**said, "command": None, "process": identity, **values}).encode()


@pytest.fixture
def theirs() -> Iterator[ProcessIdentity]:
    """A process of another user."""
    with subprocess.Popen(["sleep", "600"], user=_USER, group=_USER, extra_groups=[]) as running:
        found = ProcessIdentity.of(running.pid)
        assert found is not None
        yield found
        running.kill()


def test_a_directory_that_a_killed_command_left_is_opened_to_others(
    home: Home, base: Path, root: None
) -> None:
    assert home("a").why_not == ""
    (base / "users").chmod(0o700)
    assert home("b").why_not == ""
    assert (base / "users").stat().st_mode & 0o7777 == 0o1777


def test_hostile_files_count_for_nothing(
    home: Home, base: Path, root: None, process: ProcessIdentity, theirs: ProcessIdentity
) -> None:
    a = home("a")
    assert a.why_not == ""
    _file_of_user(base, _said(theirs))
    assert _names(a) == ["x"]
    for text in (
        b"",
        b"[" * 4000,
        b"\xff\xfe",
        b"[]",
        b"7",
        _said(theirs, memory=-1),
        _said(theirs, memory=1 << 70),
        _said(theirs, memory="1"),
        _said(theirs, memory=True),
        _said(theirs, name="x" * 65),
        _said(theirs, name=None),
        _said(theirs, name="x\x1b[2J"),
        _said(theirs, name="x\n"),
        _said(theirs, process=[1]),
        _said(theirs, process=[theirs.pid, theirs.start_time + 1]),
        _said(theirs, process=None),
        _said(theirs, boot="another"),
        _said(theirs) + b" " * 4096,
        # A process of another user than the file's.
        _said(process),
    ):
        _file_of_user(base, text)
        assert _names(a) == [], text
    _file_of_user(base, _said(theirs), owner=_USER + 1)
    assert _names(a) == []
    file = _file_of_user(base, b"")
    file.unlink()
    os.mkfifo(file)
    os.chown(file, _USER, _USER)
    assert _names(a) == []
    file.unlink()
    file.symlink_to("/etc/shadow")
    assert _names(a) == []
    file.unlink()
    file.mkdir()
    assert _names(a) == []


def test_a_directory_of_another_user_among_those_of_root_counts_for_nothing(
    home: Home, base: Path, root: None, theirs: ProcessIdentity
) -> None:
    a = home("a")
    assert a.why_not == ""
    _file_of_user(base, _said(theirs))
    (base / "users" / f"{_USER}-0").rename(base / "root" / "x")
    assert _names(a) == []
    (base / "users" / "y").symlink_to(base / "root" / "x")
    assert _names(a) == []


def test_so_many_files_of_a_user_are_read_at_most(
    home: Home, base: Path, root: None, theirs: ProcessIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cerne.host.ledger._MOST_OF_USER", 3)
    a = home("a")
    assert a.why_not == ""
    file = _file_of_user(base, _said(theirs))
    for number in range(2, 7):
        other = file.with_name(str(number))
        other.write_bytes(_said(theirs))
        os.chown(other, _USER, _USER)
    assert len(a.others()) == 3


def test_a_user_who_crowds_the_ledger_hides_nobody(
    home: Home, base: Path, root: None, theirs: ProcessIdentity
) -> None:
    a = home("a")
    assert a.why_not == ""
    for number in range(1500):
        crowd = base / "users" / f"{_USER + 1}-{number}"
        crowd.mkdir()
        os.chown(crowd, _USER + 1, _USER + 1)
    _file_of_user(base, _said(theirs))
    assert _names(a) == ["x"]


def test_a_lock_that_another_user_has_made_keeps_nobody_waiting(
    home: Home, base: Path, root: None
) -> None:
    assert home("a").why_not == ""
    lock = base / "users" / f"{_USER}.lock"
    file = os.open(lock, os.O_RDWR | os.O_CREAT)
    os.fchmod(file, 0o666)
    os.fchown(file, _USER + 1, _USER + 1)
    fcntl.flock(file, fcntl.LOCK_EX)

    def waited() -> bool:
        began = time.monotonic()
        with home("theirs").turn():
            return time.monotonic() - began < 2

    assert _in_child(waited, _USER) == 0
    os.close(file)


def test_what_a_killed_command_was_writing_is_removed(home: Home, base: Path, root: None) -> None:
    a = home("a")
    a.publish("1", WEB)
    (own,) = (base / "root").iterdir()
    (own / ".1.4194304").touch()
    a.withdraw("1")
    assert [*(base / "root").iterdir()] == []
