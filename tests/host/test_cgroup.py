"""CPU weights by control groups: v1 as it is here, v2 and systemd as they would be elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cerne.errors import HostError
from cerne.host.cgroup import MachineGroup, Surface, require_weights

_FILES = ("cgroup.procs", "cgroup.controllers", "cgroup.subtree_control", "cpu.weight")


class FakeHost:
    """Files as the kernel of another host shows them; groups that are made have theirs at once."""

    def __init__(self, directory: Path) -> None:
        self.surface = Surface(directory / "cgroup", directory / "proc", directory / "systemd")
        self.groups = self.surface.groups

    def group(self, path: str, **files: str) -> Path:
        """A group that is there, with this in its files (``_`` for a dot)."""
        group = self.groups / path
        group.mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            (group / name).touch()
        for name, text in files.items():
            (group / name.replace("_", ".", 1)).write_text(text)
        return group

    def process(self, pid: int | str, groups: str) -> None:
        """A process in these groups, as /proc tells them."""
        place = self.surface.processes / str(pid)
        place.mkdir(parents=True)
        (place / "cgroup").write_text(groups)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    fake = FakeHost(tmp_path)
    make, remove = Path.mkdir, Path.rmdir

    def mkdir(path: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        make(path, mode, parents, exist_ok)
        if path.is_relative_to(fake.groups):
            for name in _FILES:
                (path / name).touch()

    def rmdir(path: Path) -> None:
        if path.is_relative_to(fake.groups):
            for name in _FILES:
                (path / name).unlink()
        remove(path)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    monkeypatch.setattr(Path, "rmdir", rmdir)
    return fake


@pytest.fixture
def unified(host: FakeHost) -> FakeHost:
    """A v2 hierarchy with a session's group in it, in which this process is."""
    cpu = {"cgroup_controllers": "cpu memory", "cgroup_type": "domain"}
    host.group("", cgroup_controllers="cpu memory", cgroup_subtree_control="cpu memory")
    host.group("user.slice", **cpu, cgroup_subtree_control="cpu")
    host.group("user.slice/session", **cpu, cgroup_procs="77")
    for pid in (77, os.getpid()):
        host.process(pid, "0::/user.slice/session\n")
    return host


def test_v2_has_a_group_beside_the_processs_own(unified: FakeHost, tmp_path: Path) -> None:
    group = MachineGroup("1234", tmp_path / "note", unified.surface)
    require_weights(unified.surface)
    group.weigh(77, 300)
    made = unified.groups / "user.slice/cerne-1234"
    assert (made / "cpu.weight").read_text() == "300"
    assert (made / "cgroup.procs").read_text() == "77"
    group.weigh(77, 50)
    assert (made / "cpu.weight").read_text().startswith("50")
    group.remove()
    assert not made.exists()
    assert not (tmp_path / "note").exists()
    group.remove()


def test_v2_turns_the_controller_on_where_it_is_off(unified: FakeHost, tmp_path: Path) -> None:
    control = unified.groups / "user.slice/cgroup.subtree_control"
    control.write_text("memory")
    MachineGroup("1", tmp_path / "note", unified.surface).weigh(77, 300)
    assert "+cpu" in control.read_text()


def test_v2_divides_no_group_that_has_processes(unified: FakeHost, tmp_path: Path) -> None:
    (unified.groups / "user.slice/cgroup.procs").write_text("5\n6")
    MachineGroup("1", tmp_path / "note", unified.surface).weigh(77, 300)
    assert (unified.groups / "cerne-1/cpu.weight").read_text() == "300"


def test_v2_that_is_not_this_users_is_refused(
    unified: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cerne.host.cgroup.os.access", lambda *_: False)
    with pytest.raises(HostError, match="gives no CPU weight") as caught:
        require_weights(unified.surface)
    assert "delegated" in caught.value.hint
    group = MachineGroup("1", tmp_path / "note", unified.surface)
    with pytest.raises(HostError):
        group.weigh(77, 300)
    assert not (tmp_path / "note").exists()


def test_what_the_kernel_refuses_leaves_nothing(unified: FakeHost, tmp_path: Path) -> None:
    unified.group("user.slice/cerne-1")
    (unified.groups / "user.slice/cerne-1/cpu.weight").unlink()
    (unified.groups / "user.slice/cerne-1/cpu.weight").mkdir()
    group = MachineGroup("1", tmp_path / "note", unified.surface)
    with pytest.raises(HostError, match=r"cpu\.weight"):
        group.weigh(77, 300)
    assert not (tmp_path / "note").exists()


def test_a_host_without_groups_is_refused(host: FakeHost) -> None:
    host.group("")
    with pytest.raises(HostError) as caught:
        require_weights(host.surface)
    assert "mount" in caught.value.hint


@pytest.fixture
def busctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A systemd that writes down what it is asked, and refuses where ``refuse`` is there."""
    program = tmp_path / "bin" / "busctl"
    program.parent.mkdir()
    told = tmp_path / "told"
    program.write_text(
        f'#!/bin/sh\n[ -e {tmp_path}/refuse ] && {{ echo no >&2; exit 1; }}\necho "$@" >>{told}\n'
    )
    program.chmod(0o755)
    (tmp_path / "systemd").mkdir()
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return told


def test_systemd_is_asked_for_a_scope(
    unified: FakeHost, busctl: Path, tmp_path: Path, root: None
) -> None:
    group = MachineGroup("1234", tmp_path / "note", unified.surface)
    require_weights(unified.surface)
    group.weigh(77, 300)
    group.weigh(77, 50)
    group.remove()
    start, change = busctl.read_text().splitlines()
    assert "StartTransientUnit ssa(sv)a(sa(sv)) cerne-1234.scope fail 3 PIDs au 1 77" in start
    assert start.endswith("CPUWeight t 300 CollectMode s inactive-or-failed 0")
    assert change.endswith("SetUnitProperties sba(sv) cerne-1234.scope true 1 CPUWeight t 50")
    (tmp_path / "refuse").touch()
    with pytest.raises(HostError, match="systemd refuses: no"):
        group.weigh(77, 300)
    assert not (tmp_path / "note").exists()


def test_a_user_to_whom_systemd_delegates_no_cpu_is_refused(
    unified: FakeHost, busctl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cerne.host.cgroup.os.geteuid", lambda: 1000)
    own = "user.slice/user-1000.slice/user@1000.service"
    unified.group(own, cgroup_controllers="memory pids")
    with pytest.raises(HostError) as caught:
        require_weights(unified.surface)
    assert "Delegate=cpu" in caught.value.hint
    unified.group(own, cgroup_controllers="cpu memory pids")
    require_weights(unified.surface)


@pytest.fixture
def sleeper() -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts processes that sleep."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(["/bin/sleep", "1000"]))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def here() -> None:
    """Skips where this host does not let us weigh processes by its own files."""
    if Path("/run/systemd/system").exists() and shutil.which("busctl"):
        pytest.skip("systemd has the groups here")
    try:
        require_weights()
    except HostError as error:
        pytest.skip(error.message)


def _group_of(process: subprocess.Popen[bytes]) -> str:
    return Path(f"/proc/{process.pid}/cgroup").read_text()


def test_a_process_of_this_host_is_weighed(
    here: None, sleeper: Callable[[], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    process, before = sleeper(), Path("/proc/self/cgroup").read_text()
    assert _group_of(process) == before
    group = MachineGroup("test-1", tmp_path / "note")
    group.weigh(process.pid, 300)
    assert "/cerne-test-1\n" in _group_of(process)
    place = Path((tmp_path / "note").read_text())
    if (place / "cpu.shares").exists():
        assert (place / "cpu.shares").read_text() == "3072\n"
    group.weigh(process.pid, 1)
    # A process that is still in it goes back.
    group.remove()
    assert _group_of(process) == before
    assert not place.exists()


def test_a_group_that_a_killed_command_made_is_found(
    here: None, sleeper: Callable[[], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    process = sleeper()
    MachineGroup("test-2", tmp_path / "note").weigh(process.pid, 300)
    place = Path((tmp_path / "note").read_text())
    process.kill()
    process.wait()
    MachineGroup("test-2", tmp_path / "note").remove()
    assert not place.exists()
