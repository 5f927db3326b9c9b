"""Carrying a snapshot to another host, in one file (`cerne.manager.snapshots.archive`)."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from cerne import faults
from cerne.errors import DamagedError, HostError, InputError, NotFoundError, StorageError
from cerne.images.files import new_file, storage_errors, sync_directory
from cerne.images.parts import Parts
from cerne.manager.disks.layers import Layers
from cerne.manager.lock import held
from cerne.manager.machines.collection import collect
from cerne.manager.machines.context import ManagerContext
from cerne.manager.recovery import discard, unmade_directory
from cerne.manager.snapshots import archive
from cerne.manager.snapshots.outside import (
    require_nothing_of_a_host,
    require_plausible_memory,
    require_strange_disk,
    require_strange_layer,
    strange_manifest,
)
from cerne.manager.store import SnapshotRow, snapshot_name_in_use
from cerne.spec.names import check_name
from cerne.storage.flatten import flatten, put_on
from cerne.units import counted, format_size

if TYPE_CHECKING:
    from cerne.images import Image, Progress
    from cerne.manager.snapshots.kept import KeptSnapshot
    from cerne.manager.snapshots.manifest import Manifest

_DISK = "disk.qcow2"


def export_snapshot(
    manager: ManagerContext, snapshot: KeptSnapshot, target: Path, progress: Progress
) -> None:
    """Write a snapshot, and the image that it is of, to one file (see `Snapshot.export`)."""
    if target.exists():
        raise InputError(f"{target} exists already", hint="give another path")
    require_nothing_of_a_host(snapshot.manifest.spec, snapshot.name)
    image = manager.images().get(snapshot.manifest.digest)
    home = target.absolute().parent
    with (
        storage_errors(f"exporting {snapshot.name}", home),
        unmade_directory(manager.home, "export") as work,
    ):
        work.mkdir(mode=0o700)
        files = _files(snapshot, image, work)
        members: list[archive.Member] = []
        for name, path in files.items():
            progress(f"reading {snapshot.name}", len(members), len(files))
            members.append(archive.member_of(name, path))
        index = archive.Index(
            name=snapshot.name,
            manifest=snapshot.manifest,
            image=_parts(image),
            members=tuple(members),
        )
        report = f"writing {target.name}"
        with new_file(target) as file:
            archive.write(file, index, files, lambda done, all_: progress(report, done, all_))
            faults.step("archive written")


def import_snapshot(
    manager: ManagerContext, source: Path, name: str | None, progress: Progress
) -> SnapshotRow:
    """Take a snapshot from a file (see `Manager.import_snapshot`)."""
    try:
        file = source.open("rb")
    except OSError as error:
        raise NotFoundError(
            f"reading {source} failed: {error.strerror}", hint=f"see: ls -l {quote(str(source))}"
        ) from error
    with file, storage_errors(f"importing {source}", manager.home.data):
        reader = archive.Reader(file, str(source))
        manifest = strange_manifest(reader.index.manifest, str(source))
        chosen = check_name(name or reader.index.name, "a snapshot's")
        if manager.store.find_snapshot(chosen) is not None:
            raise snapshot_name_in_use(chosen)
        _check_host(manager, manifest, str(source))
        require_plausible_memory(_memory(reader.index), manifest.spec.memory)
        _check_space(manager.home.data, reader.index.held)
        with _imported(manager) as (snapshot_id, work):
            reader.extract(
                lambda member: _place(work, member),
                lambda done, all_: progress(f"importing {chosen}", done, all_),
            )
            faults.step("members read")
            image = _image(manager, reader.index, work)
            row = SnapshotRow(
                id=snapshot_id,
                name=chosen,
                layer=uuid.uuid4().hex[:12] if image.disk else "",
                manifest=manifest.model_dump_json(),
                created=time.time(),
            )
            _check_disk(image, work, manifest)
            _check_cards(manager, manifest, work)
            with Layers(manager.home, manager.store).locked():
                _keep_disk(image, work, manager.home.layer(row.layer))
                _keep_memory(work, manifest)
                faults.step("import whole")
                manager.store.add_snapshot(row)
        return row


def _files(snapshot: KeptSnapshot, image: Image, work: Path) -> dict[str, Path]:
    """The files that an archive of a snapshot holds, by their members' names."""
    files: dict[str, Path | None] = {
        "image/kernel": image.boot.kernel if image.boot else None,
        "image/initrd": image.boot.initrd if image.boot else None,
        "image/disk": image.disk.path if image.disk else None,
    }
    if snapshot.memory is not None:
        files |= {f"memory/{path.name}": path for path in sorted(snapshot.memory.iterdir())}
    if snapshot.layer is not None and image.disk is not None:
        files[_DISK] = work / _DISK
        flatten(snapshot.layer, image.disk.path, image.disk.format, work / _DISK)
    return {name: path for name, path in files.items() if path is not None}


def _parts(image: Image) -> archive.ImageParts:
    return archive.ImageParts(
        command_line=image.boot.command_line if image.boot else "",
        disk_format=image.disk.format if image.disk else "raw",
        disk_size=image.disk.virtual_size if image.disk else 0,
        agent=image.agent,
        least_memory=image.least_memory,
    )


@contextmanager
def _imported(manager: ManagerContext) -> Iterator[tuple[str, Path]]:
    """The ID and the directory of a snapshot that is being made; nothing is left on a failure."""
    home = manager.home
    snapshot_id = uuid.uuid4().hex[:12]
    work, lock = home.snapshot_directory(snapshot_id), home.machine_lock(snapshot_id)
    with held(lock, "import", "a snapshot"):
        work.mkdir(mode=0o700)
        try:
            yield snapshot_id, work
        except BaseException:
            discard(work)
            lock.unlink(missing_ok=True)
            collect(manager)
            raise


def _check_host(manager: ManagerContext, manifest: Manifest, what: str) -> None:
    """Refuse what this host could not go on with, before anything of it is loaded."""
    if not manifest.has_memory:
        return
    engine = manager.choose_engine(manifest.engine)
    if not engine.restores(manifest.fingerprint):
        raise HostError(
            f"{what} was saved on another kind of processor, or by another version of its engine:"
            f" {manifest.fingerprint!r}, and this host has {engine.fingerprint()!r}",
            hint="save the machine without its memory: cerne snapshot create --no-memory",
        )


def _check_space(place: Path, wanted: int) -> None:
    free = shutil.disk_usage(place).free
    if wanted > free:
        raise StorageError(
            f"the snapshot takes {format_size(wanted)}, and {place} has {format_size(free)} left",
            hint=f"free some space: df -h {place}",
        )


def _place(work: Path, member: str) -> Path:
    """Where a member is put: memory where it stays, the rest where no memory can be."""
    kind, _, name = member.partition("/")
    return work / (name if kind == "memory" else f".{member.replace('/', '-')}")


def _image(manager: ManagerContext, index: archive.Index, work: Path) -> Image:
    """The image of a snapshot: the one that is here, or else the one that came with it."""
    images, digest = manager.images(), index.manifest.digest
    with suppress(NotFoundError):
        return images.get(digest)
    said = index.image
    disk = _if_there(work / ".image-disk")
    if disk is not None:
        require_strange_disk(disk, said.disk_format, said.disk_size, index.name)
    parts = Parts(
        kernel=_if_there(work / ".image-kernel"),
        initrd=_if_there(work / ".image-initrd"),
        command_line=said.command_line,
        disk=disk,
        disk_format=said.disk_format,
        disk_size=said.disk_size,
        agent=said.agent,
        least_memory=said.least_memory,
    )
    name = f"imported-{digest.removeprefix('sha256:')[:12]}"
    return images.add(name, parts, source=f"snapshot {index.name}", digest=digest)


def _memory(index: archive.Index) -> int:
    """Bytes of the files that an engine saved."""
    return sum(member.size for member in index.members if member.name.startswith("memory/"))


def _if_there(path: Path) -> Path | None:
    return path if path.exists() else None


def _check_disk(image: Image, work: Path, manifest: Manifest) -> None:
    if image.disk is not None:
        disk = work / f".{_DISK}"
        if not disk.exists():
            raise DamagedError("the snapshot's disk is missing", hint="export it again")
        size = manifest.spec.root_size or image.disk.virtual_size
        require_strange_layer(disk, size, "the snapshot's disk")


def _check_cards(manager: ManagerContext, manifest: Manifest, work: Path) -> None:
    """Refuse saved memory of a machine with other network cards than its specification has."""
    if not manifest.has_memory:
        return
    saved, said = manager.choose_engine(manifest.engine).saved_cards(work), len(manifest.spec.nics)
    if saved is not None and saved != said:
        raise DamagedError(
            f"the snapshot's memory is of a machine with {counted(saved, 'network card')}, and its"
            f" specification has {said}",
            hint="if you trust it, export the snapshot again",
        )


def _keep_disk(image: Image, work: Path, layer: Path) -> None:
    if image.disk is not None:
        disk = work / f".{_DISK}"
        put_on(disk, image.disk.path, image.disk.format, image.disk.virtual_size)
        disk.rename(layer)
        sync_directory(layer.parent)


def _keep_memory(work: Path, manifest: Manifest) -> None:
    for path in work.glob(".*"):
        path.unlink()
    if manifest.has_memory:
        sync_directory(work)
        sync_directory(work.parent)
    else:
        discard(work)
