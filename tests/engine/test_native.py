"""Native machines with a guest of a few bytes: what a save or a fork keeps apart, and leaves."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.engine.fleet import Fleet
from tests.waiting import PATIENCE

from cerne.devices.state import SavedState
from cerne.engine.native import NativeEngine
from cerne.engine.native import launching as native
from cerne.engine.native.configuration import ENDING_FILE
from cerne.engine.native.instance import NativeInstance
from cerne.engine.qmp import QmpClient
from cerne.engine.saved import MANIFEST_FILE, MEMORY_FILE, STATE_FILE
from cerne.errors import CerneError, DamagedError, EngineError, StorageError
from cerne.host.members import Members
from cerne.units import MIB
from cerne.vmm.end import PANICKED

# Writes a number to the first bytes of 1024 pages, over and over, one more each time, and looks
# that each page has the number of the last time: "X" where one has not, "." for each byte it gets.
_CHECKER = bytes.fromhex(
    "4831db48c7c100004000483919752d488d43014889014881c1001000004881f90000800072e448ff"
    "c366bafd03eca80174d166baf803ecb02eeeebc766baf803b058eef4ebf6"
)


# Resets by the keyboard controller; a machine that went on after that would fault for good.
_RESETTER = bytes.fromhex("0f011c25000000009090 b0fee664 0f0b")


@pytest.fixture
def checkers(
    home: Path, kvm_device: Path, small_kernel: Callable[[Path, bytes], Path]
) -> Iterator[Fleet]:
    with contextlib.closing(Fleet(home, small_kernel(home / "kernel", _CHECKER))) as made:
        made.start("a")
        assert made.say("a", b"?") == ord(".")
        yield made


@pytest.fixture
def small_disk(home: Path, root: None) -> Iterator[Path]:
    """A directory with hardly any space."""
    directory = home / "small"
    directory.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", directory]).returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield directory
    subprocess.run(["umount", "--lazy", directory], check=True)


def test_neither_sees_what_the_other_writes_after_a_fork(fleet: Fleet) -> None:
    fleet.fork("a", ["b", "c"])
    assert fleet.say("b", b"i") == 3
    assert fleet.say("a", b"iii") == 5
    assert fleet.say("c", b"?") == 2
    assert fleet.say("b", b"?") == 3


def test_a_fork_of_a_fork_ten_deep_outlives_its_ancestors(fleet: Fleet) -> None:
    names = ["a", *(f"d{depth}" for depth in range(10))]
    for parent, child in itertools.pairwise(names):
        fleet.fork(parent, [child])
        assert fleet.say(child, b"i") == fleet.say(parent, b"?") + 1
    files = fleet.files("d0")
    fleet.kill(*names[:-1])
    assert fleet.say(names[-1], b"i") == 13
    assert len(fleet.files(names[-1])) == len(files)


def test_a_child_has_nothing_of_its_parents(fleet: Fleet, root: None) -> None:
    fleet.fork("a", ["b"])
    command = Path(f"/proc/{fleet.process('b').pid}/cmdline").read_bytes()
    assert os.fsencode(fleet.plan("b").runtime) in command
    assert os.fsencode(fleet.plan("a").runtime) not in command
    files = [path for path in fleet.files("b") if path.startswith("/")]
    assert not [path for path in files if path.startswith(str(fleet.plan("a").logs))]
    assert not [path for path in files if path.startswith(str(fleet.plan("a").runtime))]
    fleet.say("b", b"x")
    assert fleet.plan("a").console_log.read_bytes() == b"\1\2"
    with QmpClient(fleet.plan("b").qmp_socket) as client:
        client.quit()
    assert fleet.process("b").wait(PATIENCE)
    assert fleet.engine.ending(fleet.plan("b").logs).reason == "it was told to quit"
    assert fleet.status("a") == "running"


def test_a_process_has_no_more_than_it_needs(fleet: Fleet, root: None) -> None:
    fleet.start("b")
    fleet.fork("a", ["c"])
    saved = fleet.save("a")
    fleet.start("d", saved)
    # Python keeps one more descriptor of whatever it has mapped.
    vcpu = ["anon_inode:kvm-vcpu:0"] * 2
    users: dict[str, str] = {}
    devices = ["/dev/kvm", "anon_inode:kvm-vm", "anon_inode:[eventpoll]", *vcpu]
    for name in "abcd":
        plan, process = fleet.plan(name), fleet.process(name).pid
        log = str(plan.engine_log)
        logs = [log, log, str(plan.console_log), str(plan.logs / ENDING_FILE)]
        # Statistics of a vCPU are read where the kernel has them.
        passed_over = ("anon_inode:[eventfd]", "anon_inode:kvm-vcpu-stats:0")
        files = [path for path in fleet.files(name) if path not in passed_over]
        memory = [str(saved / MEMORY_FILE)] if name == "d" else []
        # A child has its parent's user.
        user = users[name] = _status_of(process)["Uid"].split()[0]
        given = [str(fleet.kernel), str(plan.vsock_directory), f"/run/cerne/user-ids/{user}"]
        wanted = ["/dev/null", *logs, *given, *devices, *memory]
        assert sorted(files) == sorted(wanted), name
        status = _status_of(process)
        assert status["Uid"].split() == status["Gid"].split() == [user] * 4
        assert (status["Groups"].strip(), status["NoNewPrivs"]) == ("", "1")
        assert (status["Umask"], status["Seccomp"]) == ("0077", "2")
        assert {status[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
        assert Path(f"/proc/{process}/cwd").readlink() == Path("/")
        limits = Path(f"/proc/{process}/limits").read_text()
        assert "Max core file size        0                    0 " in limits
        # A session of its own, and no terminal.
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        assert (int(fields[3]), int(fields[4])) == (process, 0)
    assert len(set(users.values())) == 3
    assert users["a"] == users["c"]


def _status_of(process: int) -> dict[str, str]:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


@pytest.mark.parametrize(
    ("said", "console", "reason"),
    [
        ("the guest shut down", "Kernel panic - not syncing: before\n", "the guest shut down"),
        (PANICKED, "Kernel panic - not syncing: so\x1b!\r\n", f"{PANICKED}: so?!"),
        (PANICKED, "nothing\n", PANICKED),
    ],
)
def test_how_it_ended_is_read_from_what_it_leaves(
    tmp_path: Path, said: str, console: str, reason: str
) -> None:
    ending = {"orderly": said != PANICKED, "reason": said}
    (tmp_path / ENDING_FILE).write_text(json.dumps(ending))
    (tmp_path / "console.log").write_text(console)
    told = NativeEngine(emulated=False).ending(tmp_path)
    assert (told.orderly, told.reason) == (said != PANICKED, reason)


@pytest.mark.parametrize(
    "lie",
    [
        b"[" * 200_000,
        b'{"orderly": true, "reason": "' + b"x" * 100_000 + b'"}',
        b'{"orderly": true, "reason": "\\ud800"}',
        b"\0" * 10,
    ],
)
def test_an_ending_of_an_attacker_is_a_short_text(tmp_path: Path, lie: bytes) -> None:
    (tmp_path / ENDING_FILE).write_bytes(lie)
    assert len(NativeEngine(emulated=False).ending(tmp_path).reason.encode()) < 8000


def test_a_vmm_that_lies_about_its_children_has_nobody_else_taken_for_one(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute = NativeInstance._execute

    def lie(self: NativeInstance, *given: Any) -> SavedState:
        execute(self, *given)
        return SavedState("a lie", {"pids": [os.getpid()], "pause": 1})

    monkeypatch.setattr(NativeInstance, "_execute", lie)
    with pytest.raises(EngineError, match=f"process {os.getpid()} is not registered as b"):
        fleet.fork("a", ["b"])
    assert Members(fleet.plan("b").runtime).all() == []
    assert fleet.status("a") == "running"


def test_a_fault_of_our_own_is_not_taken_for_a_kill(tmp_path: Path) -> None:
    fault = "Traceback (most recent call last):\n  File x\nZeroDivisionError: division by zero\n"
    (tmp_path / "engine.log").write_text(fault)
    ending = NativeEngine(emulated=False).ending(tmp_path)
    assert not ending.orderly
    assert (
        ending.reason
        == "its process failed; the last line of its log: ZeroDivisionError: division by zero"
    )


def test_a_process_that_was_killed_has_failed(fleet: Fleet) -> None:
    # As the host's kernel does it too, for want of memory.
    fleet.kill("a")
    ending = fleet.engine.ending(fleet.plan("a").logs)
    assert (ending.orderly, ending.reason) == (False, "its process was killed")


def test_the_children_of_a_paused_machine_run(fleet: Fleet) -> None:
    with QmpClient(fleet.plan("a").qmp_socket) as client:
        client.stop()
    fleet.fork("a", ["b"])
    assert fleet.say("b", b"i") == 3
    assert fleet.status("a") == "paused"


def test_more_children_than_are_forked_in_one_turn(fleet: Fleet) -> None:
    names = [f"h{number}" for number in range(20)]
    fleet.fork("a", names)
    assert len({fleet.process(name).pid for name in names}) == 20
    assert [fleet.say(name, b"i") for name in (*names[:2], *names[-2:])] == [3] * 4
    assert fleet.say("a", b"?") == 2


def test_no_page_is_torn_while_a_guest_writes(checkers: Fleet) -> None:
    names = ["a"]
    for turn in range(2):
        children = [f"{turn}{which}" for which in "xy"]
        checkers.fork(names[turn], children)
        saved = checkers.save(names[-1])
        checkers.start(f"s{turn}", saved)
        names += [*children, f"s{turn}"]
    for name in names:
        assert checkers.say(name, b"????????") == ord(".")
        assert b"X" not in checkers.plan(name).console_log.read_bytes()


def test_a_saved_machine_goes_on_many_times(fleet: Fleet) -> None:
    saved = fleet.save("a")
    assert fleet.say("a", b"i") == 3
    fleet.kill("a")
    fleet.start("b", saved)
    assert fleet.say("b", b"i") == 3
    fleet.start("c", saved)
    fleet.fork("c", ["d"])
    assert [fleet.say(name, b"i") for name in "cdb"] == [3, 3, 4]


def test_whatever_a_machine_came_from_it_boots_anew_when_it_is_reset(fleet: Fleet) -> None:
    fleet.fork("a", ["b"])
    saved = fleet.save("b")
    fleet.start("c", saved)
    for name in ("b", "c"):
        assert fleet.say(name, b"i") == 3
        fleet.reset(name)
        assert fleet.say(name, b"i") == 1
    assert fleet.say("a", b"i") == 3
    fleet.start("d", saved)
    fleet.fork("c", ["e"])
    assert [fleet.say(name, b"i") for name in "de"] == [3, 2]


def test_a_machine_that_resets_all_the_time_is_saved_and_forked(
    home: Path, kvm_device: Path, small_kernel: Callable[[Path, bytes], Path]
) -> None:
    with contextlib.closing(Fleet(home, small_kernel(home / "kernel", _RESETTER))) as fleet:
        fleet.start("a")
        for turn in range(4):
            fleet.fork("a", [f"b{turn}"])
            fleet.start(f"c{turn}", fleet.save("a"))
        for name in ("a", "b0", "b3", "c0", "c3"):
            with QmpClient(fleet.plan(name).qmp_socket) as client:
                client.wait_event("RESET", timeout=PATIENCE)
                assert client.status() == "running"


def test_a_machine_that_will_not_run_on_is_left_paused(fleet: Fleet) -> None:
    saved = fleet.save("a", resume=False)
    assert fleet.status("a") == "paused"
    fleet.start("b", saved)
    assert fleet.say("b", b"?") == 2


def test_memory_of_zeros_takes_no_space(fleet: Fleet) -> None:
    status = (fleet.save("a") / MEMORY_FILE).stat()
    assert status.st_size == 16 * MIB
    assert status.st_blocks * 512 < MIB


@pytest.mark.parametrize("name", [STATE_FILE, MEMORY_FILE])
@pytest.mark.parametrize("harm", ["altered", "truncated", "missing"])
def test_what_is_not_as_it_was_saved_is_refused(fleet: Fleet, name: str, harm: str) -> None:
    path = fleet.save("a") / name
    content = bytearray(path.read_bytes())
    if harm == "altered":
        content[0x100000 % len(content)] ^= 1
    path.unlink()
    if harm != "missing":
        path.write_bytes(content[: len(content) // 2] if harm == "truncated" else content)
    with pytest.raises(DamagedError):
        fleet.start("b", path.parent)


def test_a_copy_of_a_saved_machine_is_as_good(fleet: Fleet, tmp_path: Path) -> None:
    copy = shutil.copytree(fleet.save("a"), tmp_path / "copy")
    fleet.start("b", copy)
    assert fleet.say("b", b"i") == 3


@pytest.mark.parametrize(
    ("field", "value"), [("fingerprint", "native 1 0"), ("format", 99), ("memory", 1)]
)
def test_a_machine_of_another_kind_is_refused(fleet: Fleet, field: str, value: object) -> None:
    saved = fleet.save("a")
    manifest = json.loads((saved / MANIFEST_FILE).read_text())
    (saved / MANIFEST_FILE).write_text(json.dumps(manifest | {field: value}))
    with pytest.raises(DamagedError):
        fleet.start("b", saved)


def test_a_machine_that_cannot_be_saved_runs_on(fleet: Fleet) -> None:
    with pytest.raises(StorageError):
        fleet.instance("a").save(Path("/nonexistent"), (), resume=True)
    assert fleet.say("a", b"i") == 3


def test_a_full_disk_is_said_in_words(fleet: Fleet, small_disk: Path) -> None:
    with pytest.raises(StorageError, match="No space"):
        fleet.instance("a").save(small_disk, (), resume=True)
    assert not (small_disk / MANIFEST_FILE).exists()
    assert fleet.say("a", b"i") == 3


def test_a_machine_that_cannot_be_forked_runs_on(fleet: Fleet) -> None:
    child = fleet.plan("b")
    with pytest.raises(CerneError):
        fleet.instance("a").fork((), [replace(child, logs=child.logs / "none")])
    assert fleet.say("a", b"i") == 3


# A VMM that ends as if it were killed, at the step that the file beside it names, and that comes
# no further than the one that another file names. It opens nothing once its walls are up.
_DYING_VMM = """
import mmap, os, sys, time
from pathlib import Path
from cerne import faults
from cerne.vmm.__main__ import main

def mapped(name):
    with Path(sys.argv[0]).with_name(name).open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

words = {name: mapped(name) for name in ("step", "last")}

def die(step):
    said = {name: words[name][:].rstrip().decode() for name in words}
    if said["step"] == step:
        os._exit(9)
    while said["last"] == step:
        time.sleep(60)

faults.hook = die
sys.exit(main())
"""
_LONGEST_STEP = 32


@pytest.fixture
def dying(fleet: Fleet, home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """From now on each new VMM, and its children, die at a step that is named later."""
    (home / "vmm.py").write_text(_DYING_VMM)
    for file in ("step", "last"):
        (home / file).write_text("none".ljust(_LONGEST_STEP))
    monkeypatch.setattr(native, "VMM", (sys.executable, "-I", str(home / "vmm.py")))
    monkeypatch.setattr(native, "running_fork_server", lambda: None)
    fleet.start("m")
    assert fleet.say("m", b"iii") == 3

    return lambda step: _write_over(home / "step", step)


def _write_over(path: Path, step: str) -> None:
    """Name a step in a file that processes have mapped."""
    with path.open("r+b") as file:
        file.write(step.ljust(_LONGEST_STEP).encode())


def _strays(fleet: Fleet, name: str) -> list[int]:
    """The processes of a machine."""
    return [process.pid for process in Members(fleet.plan(name).runtime).alive()]


@pytest.mark.parametrize("step", ["in the child", "child apart", "child assembled"])
def test_a_child_that_dies_leaves_its_parent(
    fleet: Fleet, dying: Callable[[str], None], step: str
) -> None:
    dying(step)
    with pytest.raises(EngineError):
        fleet.fork("m", ["b"])
    assert _strays(fleet, "b") == []
    dying("none")
    fleet.fork("m", ["c"])
    assert [fleet.say(name, b"i") for name in ("m", "c")] == [4, 4]


@pytest.mark.parametrize("step", ["state read", "child forked", "parent runs"])
def test_a_parent_that_dies_is_said(fleet: Fleet, dying: Callable[[str], None], step: str) -> None:
    dying(step)
    with pytest.raises(EngineError):
        fleet.fork("m", ["b"])
    assert fleet.process("m").wait(PATIENCE)
    for pid in _strays(fleet, "b"):
        os.kill(pid, signal.SIGKILL)
    assert fleet.say("a", b"i") == 3


def test_children_are_found_by_their_own_names_from_the_first(
    fleet: Fleet,
    dying: Callable[[str], None],
    home: Path,
    eventually: Callable[[Callable[[], bool]], None],
) -> None:
    _write_over(home / "last", "in the child")
    dying("child forked")
    assert _strays(fleet, "b") == []
    with ThreadPoolExecutor() as beside:
        # It has to do with what its parent had open until it is apart.
        forking = beside.submit(fleet.fork, "m", ["b", "c"])
        try:
            eventually(lambda: [len(_strays(fleet, name)) for name in "mb"] == [0, 1])
        finally:
            for pid in _strays(fleet, "m") + _strays(fleet, "b"):
                os.kill(pid, signal.SIGKILL)
        with pytest.raises(EngineError):
            forking.result()


@pytest.mark.parametrize("step", ["in the saver", "memory written", "state written"])
def test_a_saver_that_dies_leaves_no_snapshot_and_the_machine(
    fleet: Fleet, dying: Callable[[str], None], step: str
) -> None:
    dying(step)
    with pytest.raises(EngineError, match="killed"):
        fleet.save("m")
    assert fleet.say("m", b"i") == 4
    dying("none")
    fleet.start("b", fleet.save("m"))
    assert fleet.say("b", b"i") == 5


def test_a_restored_machine_that_dies_leaves_the_snapshot(
    fleet: Fleet, dying: Callable[[str], None]
) -> None:
    saved = fleet.save("m")
    dying("assembled")
    with pytest.raises(EngineError):
        fleet.start("b", saved)
    dying("none")
    fleet.start("c", saved)
    assert fleet.say("c", b"i") == 4
