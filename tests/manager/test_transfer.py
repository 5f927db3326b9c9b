"""Snapshots that are carried to another host, and what others may send instead."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.manager.conftest import FakeEngine

from cerne.errors import (
    CerneError,
    ChecksumError,
    ConflictError,
    DamagedError,
    HostError,
    InputError,
    NotFoundError,
    StorageError,
)
from cerne.host.programs import require_program
from cerne.manager import Home, Machine, Manager, State, archive
from cerne.manager.snapshot import Snapshot
from cerne.storage.overlay import backing_of


@pytest.fixture
def elsewhere(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: FakeEngine
) -> Manager:
    """A manager of another home, which has no images."""
    data = home / "elsewhere"
    monkeypatch.setenv("CERNE_HOME", str(data))
    return Manager(Home.of_this_user(), lambda _requested: engine)


@pytest.fixture
def snapshot(machine: Machine, manager: Manager) -> Snapshot:
    """A snapshot with memory, of a machine that wrote to its disk before it ran."""
    _write(manager.home.root_disk(machine.id), "write -P 7 64k 64k")
    machine.start()
    return machine.snapshot("old")


@pytest.fixture
def exported(snapshot: Snapshot, tmp_path: Path) -> Path:
    target = tmp_path / "old.cerne"
    snapshot.export(target)
    return target


def _write(disk: Path, command: str) -> None:
    program = require_program("qemu-img").with_name("qemu-io")
    if not program.exists():
        pytest.skip("qemu-io is not installed: it comes with qemu-img, in qemu-utils")
    subprocess.run([program, "-f", "qcow2", "-c", command, disk], check=True, capture_output=True)


def _left(manager: Manager) -> list[Path]:
    home = manager.home
    return [*home.snapshots.iterdir(), *home.layers.iterdir()]


def test_it_arrives_as_it_was(
    snapshot: Snapshot, exported: Path, elsewhere: Manager, manager: Manager, engine: FakeEngine
) -> None:
    arrived = elsewhere.import_snapshot(exported)
    assert (arrived.name, arrived.manifest) == ("old", snapshot.manifest)
    assert arrived.memory is not None
    assert snapshot.memory is not None
    names = sorted(path.name for path in snapshot.memory.iterdir())
    assert sorted(path.name for path in arrived.memory.iterdir()) == names
    for name in names:
        assert (arrived.memory / name).read_bytes() == (snapshot.memory / name).read_bytes()
    assert arrived.layer is not None
    image = elsewhere.images.get(snapshot.manifest.digest)
    assert image.disk is not None
    assert backing_of(arrived.layer) == (image.disk.path, "qcow2")
    _write(arrived.layer, "read -P 7 64k 64k")
    _write(arrived.layer, "read -P 0 128k 64k")
    copy = arrived.restore_as("copy")
    assert copy.state is State.RUNNING
    with pytest.raises(ConflictError):
        elsewhere.import_snapshot(exported)
    assert elsewhere.import_snapshot(exported, "again").name == "again"


def test_a_snapshot_of_a_disk_alone(machine: Machine, elsewhere: Manager, tmp_path: Path) -> None:
    machine.snapshot("disk").export(tmp_path / "disk.cerne")
    arrived = elsewhere.import_snapshot(tmp_path / "disk.cerne")
    assert arrived.memory is None
    assert list(elsewhere.home.snapshots.iterdir()) == []
    assert arrived.restore_as("copy").state is State.RUNNING


def test_holes_stay_holes(tmp_path: Path) -> None:
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.seek(8 << 20)
        file.write(b"x" * 5000)
        file.truncate(64 << 20)
    member = archive.member_of("memory/ram", sparse)
    assert member.held < 1 << 20
    assert member.size == 64 << 20


def test_another_processor_is_refused_before_anything_is_loaded(
    exported: Path, elsewhere: Manager, engine: FakeEngine
) -> None:
    engine.version = "another"
    with pytest.raises(HostError, match="another kind of processor") as caught:
        elsewhere.import_snapshot(exported)
    assert "--no-memory" in caught.value.hint
    assert _left(elsewhere) == []
    assert list(elsewhere.images.list()) == []


def test_what_is_no_snapshot_is_refused(elsewhere: Manager, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        elsewhere.import_snapshot(tmp_path / "missing")
    for content in (b"", b"nothing of the kind" * 100, bytes(20 << 10)):
        (tmp_path / "wrong").write_bytes(content)
        with pytest.raises(DamagedError):
            elsewhere.import_snapshot(tmp_path / "wrong")
    assert _left(elsewhere) == []


def test_a_target_that_is_there_is_kept(snapshot: Snapshot, exported: Path) -> None:
    before = exported.read_bytes()
    with pytest.raises(InputError, match="there already"):
        snapshot.export(exported)
    assert exported.read_bytes() == before
    assert len(list(exported.parent.glob("*old.cerne*"))) == 1


def _altered(source: Path, change: Callable[[dict[str, object]], None]) -> Path:
    """The archive with another index, whose digest is right."""
    target = source.with_name("altered.cerne")
    with tarfile.open(source) as old, tarfile.open(target, "w") as new:
        for info in old:
            content = old.extractfile(info)
            assert content is not None
            data = content.read()
            if info.name == "index.json":
                index = json.loads(data)
                change(index)
                data = json.dumps(index).encode()
                head = data
            elif info.name == "index.sha256":
                data = hashlib.sha256(head).hexdigest().encode()
            info.size = len(data)
            new.addfile(info, io.BytesIO(data))
    return target


def _member(index: dict[str, object], name: str) -> dict[str, object]:
    members = index["members"]
    assert isinstance(members, list)
    found: dict[str, object] = next(member for member in members if member["name"] == name)
    return found


def _section(index: dict[str, object], name: str) -> dict[str, object]:
    section = index[name]
    assert isinstance(section, dict)
    return section


def _mounted(index: dict[str, object]) -> None:
    mount = {"source": "/etc", "target": "/mnt", "read_only": False}
    _section(_section(index, "manifest"), "spec")["mounts"] = [mount]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda index: index.update(version=2), DamagedError),
        (lambda index: index.update(surplus=1), DamagedError),
        (lambda index: index.update(name="../x"), InputError),
        (lambda index: index.update(members=[]), ChecksumError),
        (lambda index: index["members"].append(index["members"][0]), DamagedError),
        (lambda index: _member(index, "memory/state").update(name="memory/../../x"), DamagedError),
        (
            lambda index: _member(index, "memory/state").update(name="memory/.image-disk"),
            DamagedError,
        ),
        (lambda index: _member(index, "memory/state").update(sha256="0" * 64), DamagedError),
        (lambda index: _member(index, "memory/state").update(size=1 << 60), DamagedError),
        (
            lambda index: _member(index, "memory/state").update(extents=[[0, 4], [2, 4]]),
            DamagedError,
        ),
        (lambda index: _member(index, "memory/state").update(extents=[[-1, 4]]), DamagedError),
        (
            lambda index: _member(index, "memory/state").update(
                size=1 << 49, extents=[[0, 1 << 49]]
            ),
            StorageError,
        ),
        (lambda index: _section(index, "manifest").update(engine="none"), HostError),
        (
            lambda index: _section(index, "manifest").update(digest="sha256:" + "0" * 64),
            ChecksumError,
        ),
        (_mounted, InputError),
    ],
)
def test_an_index_that_lies_is_refused(
    exported: Path,
    elsewhere: Manager,
    engine: FakeEngine,
    change: Callable[[dict[str, object]], None],
    error: type[CerneError],
) -> None:
    elsewhere_engine = FakeEngine()
    chosen = {"fake": engine, "none": elsewhere_engine}
    elsewhere_engine.version = "another"
    manager = Manager(elsewhere.home, lambda requested: chosen.get(requested, engine))
    with pytest.raises(error):
        manager.import_snapshot(_altered(exported, change))
    assert _left(manager) == []
    assert manager.snapshots() == []
    assert list(manager.images.list()) == []


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), cut=st.booleans())
def test_an_altered_file_is_refused_or_harmless(
    exported: Path, elsewhere: Manager, snapshot: Snapshot, place: float, flip: int, cut: bool
) -> None:
    content = bytearray(exported.read_bytes())
    at = int(place * len(content))
    if cut:
        del content[at:]
    else:
        content[at] ^= flip
    altered = exported.with_name("altered.cerne")
    altered.write_bytes(content)
    try:
        arrived = elsewhere.import_snapshot(altered)
    except CerneError:
        assert _left(elsewhere) == []
        return
    # What is altered was between the members, where nothing is.
    assert arrived.manifest == snapshot.manifest
    assert arrived.memory is not None
    assert snapshot.memory is not None
    for path in snapshot.memory.iterdir():
        assert (arrived.memory / path.name).read_bytes() == path.read_bytes()
    arrived.remove()
