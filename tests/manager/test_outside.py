"""The gate for what comes from outside, tried with archives that lie about disks and images."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cerne.client import Host
from cerne.errors import CerneError, ChecksumError, DamagedError, ImageError, InputError
from cerne.images.parts import Parts
from cerne.manager import Machine, Manager
from cerne.manager.snapshots.manifest import Manifest
from cerne.manager.snapshots.outside import require_nothing_of_a_host, strange_manifest
from cerne.spec.machine import machine_spec
from cerne.spec.resources import Resources

Index = dict[str, object]
Contents = dict[str, bytes]


@pytest.fixture
def archive(machine: Machine, tmp_path: Path) -> Path:
    """Of a machine that never ran: its disk, and the image that it is of."""
    machine.snapshot("old").export(tmp_path / "old.cerne")
    return tmp_path / "old.cerne"


def _forged(source: Path, change: Callable[[Index, Contents], None]) -> Path:
    """The archive with another index and other contents, their digests made right."""
    with tarfile.open(source) as old:
        contents = {info.name: _content(old, info) for info in old}
    index = json.loads(contents.pop("index.json"))
    del contents["index.sha256"]
    change(index, contents)
    for member in index["members"]:
        member["sha256"] = hashlib.sha256(contents[member["name"]]).hexdigest()
    head = json.dumps(index).encode()
    digest = hashlib.sha256(head).hexdigest().encode()
    target = source.with_name("forged.cerne")
    with tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as new:
        for name, data in {"index.json": head, "index.sha256": digest, **contents}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            new.addfile(info, io.BytesIO(data))
    return target


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(info)
    assert file is not None
    return file.read()


def _section(index: Index, name: str) -> Index:
    section = index[name]
    assert isinstance(section, dict)
    return section


def _add(index: Index, contents: Contents, name: str, size: int) -> None:
    members = index["members"]
    assert isinstance(members, list)
    members.append({"name": name, "size": size, "extents": []})
    contents[name] = b""


def _patched(place: int, value: bytes) -> Callable[[Index, Contents], None]:
    def change(_index: Index, contents: Contents) -> None:
        disk = bytearray(contents["disk.qcow2"])
        disk[place : place + len(value)] = value
        contents["disk.qcow2"] = bytes(disk)

    return change


def _of_image(text: str) -> Callable[[Index, Contents], None]:
    return lambda index, _contents: _section(index, "manifest").update(image=text)


def _asked_for(text: str) -> Callable[[Index, Contents], None]:
    return lambda index, _contents: _section(_section(index, "manifest"), "spec").update(image=text)


_REFCOUNTS_AT, _L1_AT, _SIZE_AT = 48, 40, 24


@pytest.mark.parametrize(
    ("change", "error"),
    [
        # Who reads all of these reads for days.
        (lambda index, contents: _add(index, contents, "image/kernel", 1 << 50), DamagedError),
        (lambda index, contents: _add(index, contents, "image/initrd", 1 << 50), DamagedError),
        (_patched(_SIZE_AT, struct.pack(">Q", 1 << 60)), ImageError),
        (_patched(_SIZE_AT, struct.pack(">Q", 2 << 20)), ImageError),
        (_patched(_REFCOUNTS_AT, struct.pack(">Q", 1 << 40)), ImageError),
        (_patched(_L1_AT, struct.pack(">Q", 1 << 40)), ImageError),
        (_patched(8, struct.pack(">QI", 512, 11)), ImageError),
        (_of_image("a\x1b]0;x\x07"), InputError),
        (_of_image("../../x"), InputError),
        (_asked_for("a\nb"), InputError),
        (_asked_for("a" * 100_000), InputError),
    ],
)
def test_what_lies_about_disks_and_images_is_refused(
    archive: Path,
    manager: Manager,
    change: Callable[[Index, Contents], None],
    error: type[CerneError],
) -> None:
    layers = sorted(manager.home.layers.iterdir())
    with pytest.raises(error):
        manager.import_snapshot(_forged(archive, change), "forged")
    assert sorted(manager.home.layers.iterdir()) == layers
    assert [snapshot.name for snapshot in manager.snapshots()] == ["old"]
    assert [image.name for image in manager.images.list()] == ["blank"]
    assert list(manager.home.snapshots.iterdir()) == []


def test_what_is_not_changed_is_taken(archive: Path, host: Host) -> None:
    taken = _forged(archive, lambda _index, _contents: None)
    assert host.import_snapshot(taken, "forged").restore_as("copy").name == "copy"


def test_a_larger_disk_than_the_images_is_taken(host: Host, tmp_path: Path) -> None:
    large = host.create(machine_spec(name="large", image="blank", memory="64M", disk="3M"))
    large.snapshot("large").export(tmp_path / "large.cerne")
    assert host.import_snapshot(tmp_path / "large.cerne", "again").layer is not None


def test_a_wrong_digest_takes_no_image_away(
    archive: Path, machine: Machine, manager: Manager, tmp_path: Path
) -> None:
    # The machine's image lost its name, and is here by its digest alone.
    other = tmp_path / "other.raw"
    other.write_bytes(bytes(2 << 20))
    manager.images.import_(str(other), "blank", replace=True)

    def promise(index: Index, _contents: Contents) -> None:
        _section(index, "manifest").update(digest="sha256:" + "0" * 64)

    with pytest.raises(ChecksumError, match="was given"):
        manager.import_snapshot(_forged(archive, promise), "forged")
    assert manager.images.get(machine.record.digest).disk is not None
    assert [image.name for image in manager.images.list()] == ["blank"]


def test_an_image_of_another_digest_is_not_kept(manager: Manager, tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"x")
    with pytest.raises(ChecksumError, match="was given"):
        manager.images.add("new", Parts(kernel=kernel), source="x", digest="sha256:" + "0" * 64)
    assert [image.name for image in manager.images.list()] == ["blank"]


def test_access_to_another_host_is_not_access_to_this_one() -> None:
    spec = machine_spec(name="m", image="tiny", host_access=[8000])
    digest = f"sha256:{'0' * 64}"
    given = Manifest(machine="m", spec=spec, image="tiny", digest=digest, engine="", fingerprint="")
    assert strange_manifest(given, "it").spec.nics[0].host_access == ()


def test_what_is_promised_on_another_host_is_not_taken_from_this_one() -> None:
    asked = {
        "cpu": {"guarantee": "1", "limit": "2", "weight": 10_000, "pin": "0", "numa_node": 0},
        "memory": {"guarantee": "1G", "merge": True, "limit": "3G"},
        "disk": {"weight": 1000, "iops": 500},
    }
    resources = Resources.model_validate(asked)
    spec = machine_spec(name="m", image="tiny", memory="2G")
    spec = spec.model_copy(update={"resources": resources})
    digest = f"sha256:{'0' * 64}"
    given = Manifest(machine="m", spec=spec, image="tiny", digest=digest, engine="", fingerprint="")
    kept = {"cpu": {"limit": "2"}, "memory": {"limit": "3G"}, "disk": {"iops": 500}}
    assert strange_manifest(given, "it").spec.resources == Resources.model_validate(kept)


def test_a_second_card_on_a_network_of_another_host_is_refused() -> None:
    nics = [{"network": "user"}, {"network": "prod", "slot": 0}]
    spec = machine_spec(name="m", image="tiny", nics=nics)
    with pytest.raises(InputError, match="a second network card on a tap or a network"):
        require_nothing_of_a_host(spec, "it")
