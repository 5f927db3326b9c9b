"""Snapshots that are carried to another host, and what others may send instead."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import sys
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
    ImageError,
    InputError,
    NotFoundError,
)
from cerne.host.programs import require_program
from cerne.manager import Home, Machine, Manager, State
from cerne.manager.machines.machine import Snapshot
from cerne.manager.snapshots import archive
from cerne.manager.snapshots.manifest import Manifest
from cerne.spec.machine import machine_spec
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


def _stranger(snapshot: Snapshot) -> Manifest:
    """Its manifest, as of no machine of the store."""
    return snapshot.manifest.model_copy(update={"machine": ""})


def _left(manager: Manager) -> list[Path]:
    home = manager.home
    return [*home.snapshots.iterdir(), *home.layers.iterdir()]


def test_it_arrives_as_it_was(
    snapshot: Snapshot, exported: Path, elsewhere: Manager, manager: Manager, engine: FakeEngine
) -> None:
    # It has the memory of a guest.
    assert exported.stat().st_mode & 0o777 == 0o600
    arrived = elsewhere.import_snapshot(exported)
    assert (arrived.name, arrived.manifest) == ("old", _stranger(snapshot))
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


def test_what_arrives_is_of_no_machine_here_whatever_its_name(
    exported: Path, elsewhere: Manager, engine: FakeEngine, tmp_path: Path
) -> None:
    elsewhere.images.import_(str(tmp_path / "blank.raw"), "blank")
    own = elsewhere.create(machine_spec(name="web", image="blank", memory="64M"))
    disk = elsewhere.home.root_disk(own.id)
    _write(disk, "write -P 9 64k 64k")
    before = disk.read_bytes()
    with pytest.raises(NotFoundError, match="its machine is on another host"):
        elsewhere.import_snapshot(exported).restore()
    assert disk.read_bytes() == before
    assert elsewhere.get("web").state is State.DEFINED


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


def test_cards_that_the_memory_does_not_have_are_refused(
    snapshot: Snapshot, exported: Path, elsewhere: Manager, engine: FakeEngine
) -> None:
    engine.cards = len(snapshot.manifest.spec.nics) + 1
    with pytest.raises(DamagedError, match="with 2 network cards, and its specification has 1"):
        elsewhere.import_snapshot(exported)
    assert _left(elsewhere) == []
    engine.cards -= 1
    assert elsewhere.import_snapshot(exported).name == "old"


def test_what_is_no_snapshot_is_refused(elsewhere: Manager, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=f"see: ls -l {tmp_path}/missing"):
        elsewhere.import_snapshot(tmp_path / "missing")
    for content in (b"", b"nothing of the kind" * 100, bytes(20 << 10)):
        (tmp_path / "wrong").write_bytes(content)
        with pytest.raises(DamagedError):
            elsewhere.import_snapshot(tmp_path / "wrong")
    assert _left(elsewhere) == []


def test_a_target_that_is_there_is_kept(snapshot: Snapshot, exported: Path) -> None:
    before = exported.read_bytes()
    with pytest.raises(InputError, match="exists already"):
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


def _spec(index: dict[str, object]) -> dict[str, object]:
    return _section(_section(index, "manifest"), "spec")


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
            ImageError,
        ),
        (lambda index: _section(index, "manifest").update(engine="none"), HostError),
        (
            lambda index: _section(index, "manifest").update(digest="sha256:" + "0" * 64),
            ChecksumError,
        ),
        (_mounted, InputError),
        (lambda index: _spec(index).update(name="../x", cpus=-3), DamagedError),
        (lambda index: _spec(index).update(cpus=-3), DamagedError),
        (lambda index: _spec(index).update(memory=1), DamagedError),
        (lambda index: _spec(index).update(labels={"a": "b" * 5000}), DamagedError),
        (
            lambda index: _spec(index).update(nics=[{"slot": 0, "network": "tap:t"}]),
            InputError,
        ),
        (
            lambda index: _spec(index).update(
                disks=[{"serial": "a", "slot": 0, "path": "/etc/shadow", "format": "raw"}]
            ),
            InputError,
        ),
        (lambda index: _section(index, "manifest").update(digest="tiny"), DamagedError),
        (
            lambda index: _section(index, "manifest").update(data_layers={"a": "../../x"}),
            DamagedError,
        ),
        (
            lambda index: _section(index, "manifest").update(data_layers={"a/b": "0" * 12}),
            DamagedError,
        ),
        (lambda index: _section(index, "manifest").update(data_layers={"a": "0" * 12}), InputError),
        (lambda index: _section(index, "image").update(command_line="a\0b"), DamagedError),
        (lambda index: _section(index, "image").update(command_line="a" * 5000), DamagedError),
        (lambda index: _section(index, "image").update(disk_size=3 << 20), ImageError),
        (lambda index: _section(index, "image").update(disk_format="raw"), ImageError),
        (lambda index: index.update(surplus=[[]] * 600_000), DamagedError),
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
    assert arrived.manifest == _stranger(snapshot)
    assert arrived.memory is not None
    assert snapshot.memory is not None
    for path in snapshot.memory.iterdir():
        assert (arrived.memory / path.name).read_bytes() == path.read_bytes()
    arrived.remove()


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    """What others sent, by the code of 25 November: whole, with a backing file, of our machine."""
    for source in (Path(__file__).parent / "archives").glob("*.gz"):
        (tmp_path / source.stem).write_bytes(gzip.decompress(source.read_bytes()))
    return tmp_path


def test_an_archive_of_november_is_taken(archives: Path, elsewhere: Manager) -> None:
    assert elsewhere.import_snapshot(archives / "good.cerne").manifest.machine == ""


def test_an_image_on_a_file_of_this_host_is_refused(archives: Path, elsewhere: Manager) -> None:
    with pytest.raises(ImageError, match="backing file"):
        elsewhere.import_snapshot(archives / "backing.cerne")
    assert _left(elsewhere) == []
    assert list(elsewhere.images.list()) == []


def test_no_machine_here_is_taken_back_to_what_came_from_outside(
    archives: Path, manager: Manager
) -> None:
    # The archive says that it is of the machine "victim", and IDs could be known too.
    victim = manager.create(machine_spec(name="victim", image="blank", memory="64M"))
    disk = manager.home.root_disk(victim.id).read_bytes()
    imported = manager.import_snapshot(archives / "byname.cerne")
    assert manager.snapshot(imported.name).manifest.machine == ""
    with pytest.raises(NotFoundError, match="was imported") as caught:
        imported.restore()
    assert "--as NAME" in caught.value.hint
    assert manager.home.root_disk(victim.id).read_bytes() == disk
    assert [event.kind for event in victim.events()] == ["created"]


@pytest.mark.parametrize(("network", "what"), [("tap:eth0", "tap"), ("prod", "network")])
def test_a_network_of_another_host_is_named_anew(
    exported: Path, elsewhere: Manager, engine: FakeEngine, network: str, what: str
) -> None:
    def connected(index: dict[str, object]) -> None:
        _spec(index)["nics"] = [{"network": network}]

    imported = elsewhere.import_snapshot(_altered(exported, connected))
    with pytest.raises(InputError, match=f"a {what} of another host"):
        imported.restore_as("copy")
    assert elsewhere.networks() == []
    assert elsewhere.machines() == []


_READ = """
import resource, sys
from cerne.errors import DamagedError
from cerne.manager.snapshots.archive import Reader
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    Reader(open(sys.argv[1], "rb"), "x")
except DamagedError:
    pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize(
    "part",
    [
        b"[0,1]," * 66_000,
        b'"",' * 266_000,
        b'"a":1,' * 266_000,
        b"[" * 266_000,
        b"[[[[[[[[]]]]]]]]," * 22_000,
        b"{}," * 99_000,
        b"1.5e300," * 266_000,
    ],
)
@pytest.mark.parametrize("place", [b'{"members":[{"extents":[%b]}]}', b'{"image":{%b}}', b"[%b]"])
def test_an_index_takes_little_memory_to_read(tmp_path: Path, part: bytes, place: bytes) -> None:
    head = place.replace(b"%b", part.rstrip(b","))
    digest = hashlib.sha256(head).hexdigest().encode()
    with tarfile.open(tmp_path / "a", "w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in (("index.json", head), ("index.sha256", digest)):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    done = subprocess.run(
        [sys.executable, "-c", _READ, tmp_path / "a"], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 200 << 10


@pytest.mark.parametrize(
    "kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE, tarfile.SYMTYPE, tarfile.XHDTYPE]
)
def test_only_plain_members_are_read(elsewhere: Manager, tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("index.json")
    info.type = kind
    info.size = 1 << 40
    header = info.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "a").write_bytes(header * 5000)
    with pytest.raises(DamagedError, match="not where it should be"):
        elsewhere.import_snapshot(tmp_path / "a")


def test_many_extents_are_joined_with_their_holes(tmp_path: Path) -> None:
    sparse, pieces = tmp_path / "sparse", 40_000
    with sparse.open("wb") as file:
        for piece in range(pieces):
            file.seek(piece * 8192)
            file.write(b"x" * 4096)
    member = archive.member_of("memory/ram", sparse)
    if member.held == sparse.stat().st_size:
        assert len(member.extents) == 1
    assert len(member.extents) <= 1 << 14
    covered = sum(length for _, length in member.extents)
    assert covered >= pieces * 4096
