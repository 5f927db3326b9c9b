"""The format qcow2: against a model, against QEMU's own tools, and against files that lie."""

from __future__ import annotations

import contextlib
import os
import random
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cerne.devices.block.chain import open_chain
from cerne.devices.block.disk import Disk
from cerne.devices.block.qcow2_head import HEADER
from cerne.errors import DamagedError, ImageError
from cerne.host.programs import find_program, install_command
from cerne.storage.overlay import chain, create_overlay, expect_writes, grow, virtual_size

SIZE = 3 << 20
OPTIONS = ("cluster_size=512", "cluster_size=64k", "cluster_size=2M", "compat=0.10")


@pytest.fixture(scope="session")
def qemu_img() -> str:
    """qemu-img, or a skip that names the command that installs it."""
    path = find_program("qemu-img")
    if path is None:
        pytest.skip(f"qemu-img is not installed: {install_command('qemu-img')}")
    return str(path)


@contextlib.contextmanager
def opened(path: Path, *, read_only: bool = False) -> Iterator[Disk]:
    """A disk and what is under it; closed in order at the end."""
    disk = open_disk(path, read_only=read_only)
    try:
        yield disk
    finally:
        disk.close()


def open_disk(path: Path, *, read_only: bool = False) -> Disk:
    files = [(os.open(file, os.O_RDWR), form) for file, form in chain(path, "qcow2")]
    return open_chain(files, read_only=read_only)


def read(disk: Disk, offset: int, length: int) -> bytes:
    data = bytearray(length)
    disk.read(offset, _cut(memoryview(data)))
    return bytes(data)


def write(disk: Disk, offset: int, data: bytes) -> None:
    disk.write(offset, _cut(memoryview(data)))


def _cut(view: memoryview) -> Sequence[memoryview]:
    """In three pieces, as a guest's buffers are."""
    return [view[: len(view) // 3], view[len(view) // 3 : -1], view[-1:]]


def checked(qemu_img: str, path: Path) -> bool:
    """Whether QEMU finds nothing wrong with it."""
    done = subprocess.run([qemu_img, "check", str(path)], capture_output=True, check=False)
    return done.returncode == 0


def content(qemu_img: str, path: Path) -> bytes:
    """All of it, as QEMU reads it."""
    raw = path.with_suffix(".raw")
    subprocess.run([qemu_img, "convert", "-O", "raw", str(path), str(raw)], check=True)
    return raw.read_bytes()


def make(qemu_img: str, path: Path, options: str, base: Path | None = None) -> Path:
    under = ["-b", str(base), "-F", "raw"] if base else []
    command = [qemu_img, "create", "-q", "-f", "qcow2", "-o", options, *under, str(path)]
    subprocess.run([*command, str(SIZE)], check=True)
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A raw disk, shorter than what lies on it."""
    path = tmp_path / "base.img"
    path.write_bytes(random.Random(1).randbytes(SIZE // 2 + 512))
    return path


PLACES = st.integers(0, SIZE // 512 - 1).map(lambda sector: sector * 512)
LENGTHS = st.sampled_from([512, 4096, 65536, 200 * 512, 1 << 20])
STEPS = st.lists(
    st.tuples(st.sampled_from(["write", "zero", "discard", "reopen"]), PLACES, LENGTHS),
    max_size=12,
)


@settings(max_examples=25, deadline=None)
@given(steps=STEPS, options=st.sampled_from(OPTIONS[:3]), seed=st.integers(0, 1 << 16))
def test_it_is_what_was_written(
    steps: list[tuple[str, int, int]], options: str, seed: int, qemu_img: str
) -> None:
    numbers = random.Random(seed)
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        (home / "base.img").write_bytes(numbers.randbytes(SIZE // 2))
        path = make(qemu_img, home / "disk.qcow2", options, home / "base.img")
        model = bytearray((home / "base.img").read_bytes().ljust(SIZE, b"\0"))
        disk = open_disk(path)
        for action, place, length in steps:
            length = min(length, SIZE - place)
            if action == "reopen":
                disk.close()
                disk = open_disk(path)
            elif action == "write":
                model[place : place + length] = numbers.randbytes(length)
                write(disk, place, bytes(model[place : place + length]))
            elif action == "zero":
                model[place : place + length] = bytes(length)
                disk.write_zeroes(place, length, unmap=bool(place & 512))
            else:
                disk.discard(place, length)
                now = read(disk, place, length)
                assert all(new in (0, old) for new, old in zip(now, model[place:], strict=False))
                model[place : place + length] = now
        assert read(disk, 0, SIZE) == model
        disk.close()
        assert checked(qemu_img, path)
        assert content(qemu_img, path) == model


@pytest.mark.parametrize("options", OPTIONS)
def test_what_qemu_wrote_is_read(tmp_path: Path, base: Path, qemu_img: str, options: str) -> None:
    path = make(qemu_img, tmp_path / "disk.qcow2", options, base)
    write_it = ["-c", "write -P 7 512 70k", "-c", "write -z 1M 128k"]
    subprocess.run(["qemu-io", "-f", "qcow2", *write_it, str(path)], check=True)
    with opened(path, read_only=True) as disk:
        assert read(disk, 0, SIZE) == content(qemu_img, path)
        with pytest.raises(OSError, match="read-only"):
            write(disk, 0, bytes(512))


def test_what_is_compressed_is_read_and_written_over(
    tmp_path: Path, base: Path, qemu_img: str
) -> None:
    path = tmp_path / "packed.qcow2"
    pack = [qemu_img, "convert", "-c", "-f", "raw", "-O", "qcow2", str(base), str(path)]
    base.write_bytes(b"heartwood" * 200_000 + bytes(512 - 9 * 200_000 % 512))
    subprocess.run(pack, check=True)
    with opened(path) as disk:
        assert read(disk, 0, disk.size) == base.read_bytes()
        write(disk, 1000 * 512, bytes(512))
    expected = bytearray(base.read_bytes())
    expected[1000 * 512 : 1001 * 512] = bytes(512)
    assert content(qemu_img, path) == expected


def test_a_disk_whose_process_was_killed_is_whole(
    tmp_path: Path, base: Path, qemu_img: str
) -> None:
    path = tmp_path / "disk.qcow2"
    create_overlay(base, "raw", path, SIZE)
    first = open_disk(path)
    write(first, 4096, b"x" * 100_352)
    # It is not closed: QEMU makes the counts anew, and so does whoever goes on with it.
    with opened(path) as second:
        assert read(second, 4096, 512) == b"x" * 512
        write(second, SIZE - 512, b"y" * 512)
    assert checked(qemu_img, path)
    killed = tmp_path / "killed.qcow2"
    create_overlay(base, "raw", killed, SIZE)
    write(open_disk(killed), 0, b"z" * 512)
    subprocess.run([qemu_img, "check", "-q", "-r", "all", str(killed)], check=False)
    assert checked(qemu_img, killed)
    assert content(qemu_img, killed)[:512] == b"z" * 512


def test_disks_lie_on_disks(tmp_path: Path, base: Path, qemu_img: str) -> None:
    under, form = base, "raw"
    for number in range(5):
        path = tmp_path / f"{number}.qcow2"
        create_overlay(under, form, path)
        with opened(path) as disk:
            write(disk, number * 65536 + 512, bytes([number + 1]) * 512)
        under, form = path, "qcow2"
    with opened(under, read_only=True) as disk:
        expected = bytearray(base.read_bytes())
        for number in range(5):
            place = number * 65536 + 512
            expected[place : place + 512] = bytes([number + 1]) * 512
        assert read(disk, 0, disk.size) == expected == content(qemu_img, under)
    assert all(checked(qemu_img, tmp_path / f"{number}.qcow2") for number in range(5))


def test_what_was_never_written_takes_no_space(tmp_path: Path, base: Path) -> None:
    path = tmp_path / "disk.qcow2"
    create_overlay(base, "raw", path, 1 << 40)
    assert path.stat().st_blocks * 512 < 128 << 10
    with opened(path) as disk:
        disk.discard(1 << 39, 1 << 20)
        assert read(disk, 1 << 39, 4096) == bytes(4096)


HOSTILE = st.dictionaries(st.integers(0, 103), st.integers(0, 255), min_size=1, max_size=8)


@settings(max_examples=150, deadline=None)
@given(header=HOSTILE, table=st.binary(max_size=64), place=st.integers(0, SIZE // 512 - 2))
def test_a_file_that_lies_harms_nobody(header: dict[int, int], table: bytes, place: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        base, path = Path(directory, "base.img"), Path(directory, "disk.qcow2")
        base.write_bytes(bytes(SIZE))
        create_overlay(base, "raw", path)
        data = bytearray(path.read_bytes())
        for at, value in header.items():
            data[at] = value
        first_table: int = HEADER.unpack_from(data)[8]
        if first_table + 64 <= len(data):
            data[first_table : first_table + len(table)] = table
        path.write_bytes(data)
        with contextlib.suppress(ImageError, OSError):
            files = [(os.open(path, os.O_RDWR), "qcow2"), (os.open(base, os.O_RDWR), "raw")]
            disk = open_chain(files, read_only=False)
            if disk.size >= (place + 2) * 512:
                with contextlib.suppress(OSError):
                    read(disk, place * 512, 1024)
                with contextlib.suppress(OSError):
                    write(disk, place * 512, bytes(1024))
            disk.close()
        assert path.stat().st_size < 1 << 30


def test_a_header_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    path.write_bytes(struct.pack(">4sI", b"QFI\xfb", 3))
    with pytest.raises(ImageError):
        open_chain([(os.open(path, os.O_RDWR), "qcow2")], read_only=False)


def test_a_format_that_is_not_known_is_refused(tmp_path: Path, base: Path) -> None:
    with pytest.raises(ImageError, match="vmdk"):
        open_chain([(os.open(base, os.O_RDWR), "vmdk")], read_only=False)


def test_a_write_waits_for_no_medium_if_it_was_expected(
    tmp_path: Path, qemu_img: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, top = tmp_path / "base", tmp_path / "top"
    base.write_bytes(bytes(SIZE))
    create_overlay(base, "raw", top)
    expect_writes(top)
    disk = open_disk(top)
    synced: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", synced.append)
        write(disk, 0, b"first")
    assert not synced
    disk.close()
    subprocess.run([qemu_img, "check", "-q", str(top)], check=True)
    with opened(top) as again:
        assert read(again, 0, 5) == b"first"


def test_a_disk_whose_writes_were_expected_and_that_was_killed_is_whole_for_qemu(
    tmp_path: Path, qemu_img: str
) -> None:
    base, top = tmp_path / "base", tmp_path / "top"
    base.write_bytes(bytes(SIZE))
    create_overlay(base, "raw", top)
    expect_writes(top)
    killed = open_disk(top)
    write(killed, 1 << 20, b"kept")
    copy = tmp_path / "copy"
    copy.write_bytes(top.read_bytes())
    killed.close()
    subprocess.run([qemu_img, "check", "-q", "-r", "all", str(copy)], check=True)
    with opened(copy) as again:
        assert read(again, 1 << 20, 4) == b"kept"


def test_only_an_overlay_expects_writes(tmp_path: Path) -> None:
    other = tmp_path / "raw"
    other.write_bytes(bytes(SIZE))
    with pytest.raises(ImageError, match="version 3"):
        expect_writes(other)
    assert other.read_bytes() == bytes(SIZE)


@pytest.mark.parametrize("options", [None, *OPTIONS[1:3]])
def test_a_disk_grows_and_keeps_its_content(
    options: str | None, base: Path, tmp_path: Path, qemu_img: str
) -> None:
    path = tmp_path / "disk.qcow2"
    if options is None:
        create_overlay(base, "raw", path, SIZE)
    else:
        make(qemu_img, path, options, base)
    with opened(path) as disk:
        write(disk, 4096, b"kept" * 128)
    before = content(qemu_img, path)
    # Two tables of the second level more than it had.
    larger = SIZE + (1 << 30)
    grow(path, larger)
    assert virtual_size(path, "qcow2") == larger
    with opened(path) as disk:
        assert read(disk, 0, SIZE) == before
        write(disk, larger - 512, b"last" * 128)
        assert read(disk, larger - 1024, 1024) == bytes(512) + b"last" * 128
    assert checked(qemu_img, path)


def test_a_disk_without_room_for_a_larger_table_stays(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    create_overlay(base, "raw", path, SIZE)
    before = path.read_bytes()
    for size in (SIZE - 512, 5 << 40):
        with pytest.raises(DamagedError, match="does not grow: it can have"):
            grow(path, size)
    assert path.read_bytes() == before
