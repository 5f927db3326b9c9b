"""The image store: by digest, never changed, shared by builds."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.waiting import PATIENCE

from cerne.errors import (
    ConflictError,
    DamagedError,
    ImageError,
    InputError,
    NotFoundError,
    StorageError,
)
from cerne.images import Image, ImageStore, Parts, Progress
from cerne.images import recipe as recipes
from cerne.images.files import locked, work_directory
from cerne.images.manifest import Manifest, decoded
from cerne.images.recipe import Recipe

Build = Callable[[Path, Path, Progress], Parts]


def _add_recipe(monkeypatch: pytest.MonkeyPatch, build: Build) -> None:
    monkeypatch.setitem(recipes.RECIPES, "toy", Recipe("toy", "for tests", build))


def _ensured(store: ImageStore, name: str, progress: Progress | None = None) -> Image:
    return store.present(name) or store.build(name, progress)


def _kernel(work: Path, content: bytes = b"kernel") -> Parts:
    path = work / "kernel"
    path.write_bytes(content)
    return Parts(kernel=path, command_line="quiet", agent=True)


def _files(store: ImageStore) -> Iterator[Path]:
    return (store._root / "files").iterdir()


def test_an_image_is_found_by_name_and_digest(store: ImageStore, raw: Path) -> None:
    image = store.import_(str(raw), "blank")
    assert image.disk is not None
    assert (image.boot, image.disk.virtual_size, image.agent) == (None, 1 << 20, False)
    assert store.get("blank") == image
    assert store.get(image.digest).digest == image.digest
    assert store.get(image.digest.removeprefix("sha256:")[:12]).digest == image.digest
    assert [found.name for found in store.list()] == ["blank"]


@pytest.mark.parametrize(
    "reference", ["nothing", "a/b", "..", "../names", "", "sha256:" + "0" * 40]
)
def test_what_is_not_there_is_not_found(store: ImageStore, reference: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        store.get(reference)
    assert "tiny" in caught.value.hint


@pytest.mark.parametrize(
    "name", ["UPPER", "a/b", "..", ".a", "x" * 200, "a:b:c", "abcdef123456", "sha256:" + "a" * 12]
)
def test_names_that_are_refused(store: ImageStore, raw: Path, name: str) -> None:
    with pytest.raises(InputError):
        store.import_(str(raw), name)
    assert list(store.list()) == []


def test_a_name_is_given_to_another_image_only_with_replace(
    store: ImageStore, raw: Path, tmp_path: Path
) -> None:
    first = store.import_(str(raw), "disk")
    other = tmp_path / "other.raw"
    other.write_bytes(bytes(2 << 20))
    with pytest.raises(ConflictError) as refused:
        store.import_(str(other), "disk")
    assert "--replace" in refused.value.hint
    assert store.get("disk").digest == first.digest
    second = store.import_(str(other), "disk", replace=True)
    assert store.get("disk").digest == second.digest != first.digest
    assert store.get(first.digest).digest == first.digest


def test_what_a_recipe_is_named_is_no_name_for_another_image(
    store: ImageStore, raw: Path, tmp_path: Path
) -> None:
    tiny = tmp_path / "tiny.raw"
    tiny.write_bytes(bytes(1 << 20))
    for source, name in ((tiny, None), (raw, "debian:12"), (raw, "tiny")):
        with pytest.raises(InputError, match="that Cerne builds"):
            store.import_(str(source), name, replace=True)
    with pytest.raises(InputError, match="that Cerne builds"):
        store.add("tiny", _kernel(tmp_path), source="an archive", replace=True)
    assert list(store.list()) == []


def test_equal_content_is_kept_once_and_never_changed(store: ImageStore, raw: Path) -> None:
    one, two = store.import_(str(raw), "one"), store.import_(str(raw), "two")
    assert one.digest == two.digest
    (file,) = _files(store)
    assert file.stat().st_mode & 0o222 == 0
    store.remove("one")
    assert store.get("two").disk is not None
    store.remove("two")
    assert list(_files(store)) == []
    with pytest.raises(NotFoundError):
        store.remove("two")


def test_a_recipe_is_built_once_while_it_is_current(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []

    def build(work: Path, cache: Path, progress: Progress) -> Parts:
        built.append(work)
        progress("Building", 1, 2)
        return _kernel(work)

    _add_recipe(monkeypatch, build)
    told: list[str] = []
    image = _ensured(store, "toy", lambda what, done, total: told.append(what))
    assert image.boot is not None
    assert (image.boot.kernel.read_bytes(), image.boot.command_line) == (b"kernel", "quiet")
    assert _ensured(store, "toy") == image
    assert (len(built), told) == (1, ["Building"])
    store.build("toy")
    assert len(built) == 2


def test_two_builds_at_once_share_one(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    both_asked = threading.Barrier(2)

    def build(work: Path, cache: Path, progress: Progress) -> Parts:
        built.append(work)
        return _kernel(work)

    _add_recipe(monkeypatch, build)

    def ask() -> None:
        both_asked.wait(PATIENCE)
        _ensured(ImageStore(store._root, store._cache), "toy")

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1


@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
def test_a_build_that_fails_leaves_nothing(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    def build(work: Path, cache: Path, progress: Progress) -> Parts:
        _kernel(work)
        raise failure

    _add_recipe(monkeypatch, build)
    with pytest.raises((StorageError, KeyboardInterrupt)) as caught:
        _ensured(store, "toy")
    if isinstance(caught.value, StorageError):
        assert "the disk is full" in caught.value.message
    assert list(store.list()) == []
    assert list((store._root / "work").glob("work-*")) == []


def test_what_a_killed_build_left_is_swept(store: ImageStore, raw: Path) -> None:
    left = store._root / "work" / "work-left"
    left.mkdir()
    (left / "large").write_bytes(b"x")
    with work_directory(store._root / "work") as in_use:
        store.import_(str(raw), "blank")
        assert in_use.exists()
    assert not left.exists()


def test_what_a_killed_build_left_is_swept_by_whoever_looks_at_images(store: ImageStore) -> None:
    cached = store._cache / "debian"
    cached.mkdir(parents=True)
    for place in (store._root / "work", cached):
        (place / "work-left" / "root").mkdir(parents=True)
    with work_directory(store._root / "work") as in_use:
        (cached / "work-left" / "root" / "file").write_text("")
        ImageStore(store._root, store._cache)
        assert in_use.exists()
    assert list(store._root.glob("work/work-*")) == []
    assert list(cached.glob("work-*")) == []


def test_what_can_be_built_is_told(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    _add_recipe(monkeypatch, lambda work, _cache, _progress: _kernel(work))
    assert "toy" in [recipe.name for recipe in store.unbuilt()]
    _ensured(store, "toy")
    assert "toy" not in [recipe.name for recipe in store.unbuilt()]
    assert "tiny" in [recipe.name for recipe in store.unbuilt()]


def test_a_name_that_is_not_there_is_answered_with_those_that_are(
    store: ImageStore, raw: Path
) -> None:
    store.import_(str(raw), "mine")
    with pytest.raises(NotFoundError) as unknown:
        store.get("debian12")
    assert "did you mean debian:12" in unknown.value.hint
    with pytest.raises(NotFoundError) as unknown:
        _ensured(store, "ubuntu")
    assert (
        "debian:12, debian:12-minimal, debian:13, debian:13-minimal, mine, tiny"
        in unknown.value.hint
    )
    assert "did you mean" not in unknown.value.hint


def test_a_cache_that_cannot_be_written_is_named(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = store._cache / "debian" / "lock"

    def build(work: Path, cache: Path, progress: Progress) -> Parts:
        raise PermissionError(errno.EACCES, "Permission denied", str(where))

    _add_recipe(monkeypatch, build)
    with pytest.raises(StorageError) as refused:
        _ensured(store, "toy")
    assert f"{store._cache} is not writable" in refused.value.message
    assert f"ls -ld {store._cache}\n" in refused.value.hint
    assert "CERNE_CACHE" in refused.value.hint


def test_a_name_that_points_nowhere_is_damage(store: ImageStore, raw: Path) -> None:
    image = store.import_(str(raw), "blank")
    assert image.disk is not None
    image.disk.path.unlink()
    with pytest.raises(DamagedError) as caught:
        store.get("blank")
    assert "cerne image rm blank" in caught.value.hint
    (store._root / "names" / "blank").write_text("{}")
    with pytest.raises(DamagedError):
        store.get("blank")


def test_export(store: ImageStore, raw: Path, tmp_path: Path) -> None:
    store.import_(str(raw), "blank")
    target = tmp_path / "out.vmdk"
    store.export("blank", target, "vmdk")
    command = ["qemu-img", "info", "--output=json", str(target)]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert (found["format"], found["virtual-size"]) == ("vmdk", 1 << 20)
    with pytest.raises(InputError, match="exists already"):
        store.export("blank", target, "vmdk")
    with pytest.raises(InputError, match="not a format"):
        store.export("blank", tmp_path / "other", "exe")
    assert not (tmp_path / "other").exists()


def test_an_image_without_a_disk_is_not_exported(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _add_recipe(monkeypatch, lambda work, _cache, _progress: _kernel(work))
    _ensured(store, "toy")
    with pytest.raises(ImageError, match="has no disk"):
        store.export("toy", tmp_path / "out")


def test_manifests() -> None:
    manifest = Manifest("a" * 64, None, "quiet", "b" * 64, "raw", 512, agent=True)
    assert decoded(manifest.encoded(), "m") == manifest
    assert manifest.files() == {"a" * 64, "b" * 64}
    assert b"least_memory" not in manifest.encoded(), "images of before keep their digests"
    larger = replace(manifest, least_memory=64 << 20)
    assert decoded(larger.encoded(), "m") == larger
    for damaged in (
        b"",
        b"{}",
        b"[]",
        b"null",
        manifest.encoded().replace(b'"version": 1', b'"version": 2'),
        manifest.encoded().replace(b'"raw"', b'"exe"'),
        manifest.encoded().replace(b"a" * 64, b"../../etc/shadow"),
        manifest.encoded().replace(b"512", b"-1"),
        manifest.encoded().replace(b'"agent"', b'"least_memory": -1, "agent"'),
    ):
        with pytest.raises(DamagedError):
            decoded(damaged, "m")


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        ImageStore(tmp_path / "file" / "images", tmp_path)


def test_root_is_not_needed(store: ImageStore) -> None:
    assert (store._root / "files").stat().st_uid == os.geteuid()


def test_a_recipe_that_is_not_built_says_how_to_build_it(store: ImageStore) -> None:
    for action in (store.get, store.remove):
        with pytest.raises(NotFoundError, match="debian:12 is not built") as refused:
            action("debian:12")
        assert refused.value.hint == "build it: cerne image build debian:12"


def test_who_waits_for_the_build_of_another_command_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    waits = threading.Event()

    def report(what: str, done: int, total: int | None) -> None:
        said.append(what)
        waits.set()

    def wait() -> None:
        with locked(tmp_path / "lock", report):
            said.append("had it")

    with locked(tmp_path / "lock", report):
        assert said == []
        waiting = threading.Thread(target=wait)
        waiting.start()
        assert waits.wait(PATIENCE)
    waiting.join(PATIENCE)
    assert said == ["Waiting for another command that makes the same", "had it"]
