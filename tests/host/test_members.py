"""The processes of a machine, as they register themselves."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cerne.errors import HostError
from cerne.host.members import MACHINE, Members, start_member, supervisor_of
from cerne.host.process import ProcessIdentity, boot_id
from cerne.vmm.jail.system import Prctl, prctl
from cerne.vmm.registration import register

Eventually = Callable[[Callable[[], bool]], None]


def test_a_program_is_registered_as_itself(tmp_path: Path, eventually: Eventually) -> None:
    members = Members(tmp_path)
    reading, writing = os.pipe()
    sleeper = start_member(
        members, MACHINE, ["/bin/sh", "-c", "echo $$ >&2; sleep 1000"], [], writing
    )
    try:
        assert int(os.read(reading, 100)) == sleeper.pid
        assert members.alive(MACHINE) == [ProcessIdentity.of(sleeper.pid)]
        assert members.alive("other") == []
        # It has nothing of its registration.
        assert Path(f"/proc/{sleeper.pid}/fd/0").samefile("/dev/null")
        members.end()
        assert sleeper.wait() == -9
        assert members.all() == []
    finally:
        sleeper.kill()
        sleeper.wait()
        os.close(reading)
        os.close(writing)


def test_who_names_the_directory_is_none_of_them(tmp_path: Path) -> None:
    (tmp_path / "vsock").mkdir()
    words = [sys.executable, "-c", "input()", str(tmp_path / "vsock" / "1.sock")]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as other:
        members = Members(tmp_path)
        start_member(members, MACHINE, ["/bin/true"], []).wait()
        members.end()
        assert other.poll() is None
        other.kill()


def test_one_that_is_killed_before_it_registers_is_none(tmp_path: Path) -> None:
    members = Members(tmp_path)
    file, _ = members.expect(MACHINE)
    os.close(file)
    assert [member.process for member in members.all()] == [None]
    assert members.alive() == []
    members.end()
    assert members.all() == []


def test_one_whose_registration_was_withdrawn_never_runs(tmp_path: Path) -> None:
    members = Members(tmp_path)
    ran = tmp_path / "ran"
    with members.command(MACHINE, ["/bin/sh", "-c", f"touch {ran}"]) as (argv, registration):
        members.end()
        assert subprocess.run(argv, stdin=registration, check=False).returncode != 0
    assert not ran.exists()


@pytest.mark.parametrize("withdrawn", [False, True])
def test_a_forked_process_registers_itself_or_ends(tmp_path: Path, withdrawn: bool) -> None:
    members = Members(tmp_path)
    file, _ = members.expect(MACHINE)
    if withdrawn:
        members.end()
    pid = os.fork()
    if pid == 0:
        register(file)
        time.sleep(1000)
        os._exit(0)
    os.close(file)
    if withdrawn:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
        return
    while not members.alive(MACHINE):
        time.sleep(0.01)
    assert members.alive(MACHINE) == [ProcessIdentity.of(pid)]
    ending = os.fork()
    if ending == 0:
        # Another process, as the one that waits must not be the one that reaps.
        members.end()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9
    os.waitpid(ending, 0)


def test_a_process_of_another_boot_or_of_nonsense_is_not_killed(tmp_path: Path) -> None:
    members = Members(tmp_path)
    status = Path("/proc/self/stat").read_bytes()
    for boot, words in ((b"another", status), (b"x", b"nonsense"), (b"\xff", status)):
        file, path = members.expect(MACHINE)
        os.close(file)
        path.write_bytes(boot + b"\n" + words)
    assert members.alive() == []
    members.end()
    assert members.all() == []


def test_those_that_have_ended_make_room_for_the_next_of_their_role(tmp_path: Path) -> None:
    members = Members(tmp_path)
    for _ in range(3):
        start_member(members, "share0", ["/bin/true"], []).wait()
    assert [member.role for member in members.all()] == ["share0"]
    assert members.alive() == []


def test_what_does_not_end_is_told_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    members = Members(tmp_path)
    sleeper = start_member(members, MACHINE, ["/bin/sleep", "1000"], [])
    eventually(lambda: members.alive() != [])
    monkeypatch.setattr(ProcessIdentity, "wait", lambda self, timeout: timeout is None)
    try:
        with pytest.raises(HostError, match=f"process {sleeper.pid} was killed and does not end"):
            members.end()
    finally:
        sleeper.kill()
        sleeper.wait()


def test_a_forked_process_is_found_by_its_pid_and_a_time(tmp_path: Path) -> None:
    members = Members(tmp_path)
    file, path = members.expect(MACHINE)
    register(file)
    assert members.alive(MACHINE) == [ProcessIdentity.of(os.getpid())]
    # One of this pid that started before this one, and has ended.
    boot, forked = path.read_bytes().splitlines()
    path.write_bytes(boot + b"\n" + b" ".join([*forked.split()[:2], b"1"]) + b"\n")
    (member,) = members.all()
    assert member.process is not None
    assert not member.alive
    # It was killed while it wrote.
    path.write_bytes(boot + b"\nforked 12 3")
    assert members.all()[0].process is None


_LATER = 1 << 60
_USER = 54321


def _confined(user: int = 0) -> subprocess.Popen[bytes]:
    """A process with a part of the walls."""

    def confine() -> None:
        prctl(Prctl.SET_NO_NEW_PRIVS, 1)
        os.setresuid(user, user, user)

    return subprocess.Popen(["sleep", "1000"], preexec_fn=confine)


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[int]:
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def _lie(path: Path, words: bytes) -> None:
    path.write_bytes(boot_id().encode() + b"\n" + words)


def test_a_process_in_an_attackers_hands_has_nobody_else_killed(tmp_path: Path, root: None) -> None:
    members = Members(tmp_path)
    with _ended(_confined(_USER)) as earlier:
        time.sleep(0.02)
        file, path = members.expect("net0", confined=True, user=_USER)
        os.close(file)
        with (
            _ended(subprocess.Popen(["sleep", "1000"])) as unconfined,
            _ended(_confined()) as of_root,
            _ended(_confined(_USER + 1)) as others,
        ):
            victims = [earlier, unconfined, of_root, others, os.getpid(), 1]
            lies = [b"forked %d %d\n" % (pid, _LATER) for pid in victims]
            lies += [Path(f"/proc/{pid}/stat").read_bytes() for pid in victims]
            # No pids at all: the manager must not fail at them.
            lies += [b"forked %d 1\n" % pid for pid in (0, -1, 1 << 31, 1 << 70)]
            lies += [b"%d (x) S %s\n" % (1 << 40, b"1 " * 50), b"forked", b"forked x y\n"]
            for lie in lies:
                file, path = members.expect("net0", confined=True, user=_USER)
                os.close(file)
                _lie(path, lie)
                assert members.alive() == []
                members.end()
                assert members.all() == []
            assert all(Path(f"/proc/{pid}").exists() for pid in victims)


def test_a_confined_process_is_known_by_its_user_or_its_supervisor(
    tmp_path: Path, root: None
) -> None:
    members = Members(tmp_path)
    paths = []
    for user in (_USER, None):
        file, path = members.expect("net0", confined=True, user=user)
        os.close(file)
        paths.append(path)
    file, supervisor = members.expect(supervisor_of("net0"))
    os.close(file)
    with _ended(_confined(_USER)) as pid:
        for path in paths:
            _lie(path, b"forked %d %d\n" % (pid, _LATER))
        assert [each.pid for each in members.alive("net0")] == [pid]
        # This process has started it.
        _lie(supervisor, Path("/proc/self/stat").read_bytes())
        assert [each.pid for each in members.alive("net0")] == [pid, pid]
        supervisor.unlink()
        members.end()
    assert members.all() == []


def test_a_registration_without_end_takes_no_memory(tmp_path: Path) -> None:
    members = Members(tmp_path)
    file, path = members.expect("net0", confined=True)
    os.truncate(path, 1 << 43)
    os.close(file)
    assert members.alive() == []
    members.end()
    assert members.all() == []
