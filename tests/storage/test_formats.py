"""Disk images of unknown origin, read by our own parser first."""

from __future__ import annotations

import json
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cerne.errors import ImageError
from cerne.host.programs import find_program, install_command
from cerne.storage.formats import data_disk_format, require_self_contained
from cerne.storage.overlay import create_empty

_HOSTILE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
_MAGICS = (b"QFI\xfb", b"KDMV", b"# Disk DescriptorFile", b"vhdxfile", b"")


def _qcow2(**fields: int) -> bytes:
    header = {
        "version": 3,
        "backing_offset": 0,
        "backing_size": 0,
        "cluster_bits": 16,
        "size": 1 << 20,
        "crypt": 0,
        "l1_size": 1,
        "l1_offset": 65536,
        "features": 0,
    } | fields
    packed = struct.pack(
        ">4sIQIIQIIQQIIQQ",
        b"QFI\xfb",
        header["version"],
        header["backing_offset"],
        header["backing_size"],
        header["cluster_bits"],
        header["size"],
        header["crypt"],
        header["l1_size"],
        header["l1_offset"],
        0,
        1,
        0,
        0,
        header["features"],
    )
    return packed.ljust(131072, b"\0")


def test_a_whole_image(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(_qcow2())
    found = require_self_contained(path)
    assert (found.format, found.virtual_size) == ("qcow2", 1 << 20)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"backing_offset": 512}, "backing file"),
        ({"features": 4}, "data is in another file"),
        ({"features": 1 << 40}, "not known"),
        ({"crypt": 2}, "encrypted"),
        ({"version": 9}, "version 9"),
        ({"cluster_bits": 60}, "2\\^60"),
        ({"l1_offset": 1 << 40}, "cut off"),
        ({"l1_size": 0xFFFFFFFF}, "cut off"),
    ],
)
def test_what_a_header_may_not_say(tmp_path: Path, fields: dict[str, int], said: str) -> None:
    path = tmp_path / "disk"
    path.write_bytes(_qcow2(**fields))
    with pytest.raises(ImageError, match=said):
        require_self_contained(path)


@_HOSTILE
@given(st.sampled_from(_MAGICS), st.binary(max_size=2048))
def test_any_bytes_are_taken_or_refused_in_words(tmp_path: Path, magic: bytes, rest: bytes) -> None:
    path = tmp_path / "disk"
    path.write_bytes(magic + rest)
    try:
        require_self_contained(path)
    except ImageError as error:
        assert error.hint


def test_a_disk_that_is_used_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(_qcow2())
    assert data_disk_format(path) == "qcow2"
    path.write_bytes(b"anything" * 128)
    assert data_disk_format(path) == "raw"
    # A file system that begins as no disk image does.
    path.write_bytes(bytes(1 << 20))
    assert data_disk_format(path) == "raw"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x" * 700,
        b"KDMV" + bytes(508),
        b"# Disk DescriptorFile".ljust(1024),
        b"vhdxfile" + bytes(504),
        bytes(64) + struct.pack("<I", 0xBEDA107F) + bytes(444),
        _qcow2(backing_offset=512, backing_size=4),
        _qcow2(crypt=1),
        _qcow2(features=1 << 2),
    ],
)
def test_what_cannot_be_used_as_it_is_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "disk"
    path.write_bytes(content)
    with pytest.raises(ImageError):
        data_disk_format(path)


@_HOSTILE
@given(st.sampled_from(_MAGICS), st.binary(max_size=2048))
def test_any_file_is_a_disk_or_refused(tmp_path: Path, magic: bytes, rest: bytes) -> None:
    path = tmp_path / "any"
    path.write_bytes(magic + rest)
    try:
        assert data_disk_format(path) in ("raw", "qcow2")
    except ImageError:
        return


def test_an_empty_disk_is_whole(tmp_path: Path) -> None:
    program = find_program("qemu-img")
    if program is None:
        pytest.skip(f"qemu-img is not installed: {install_command('qemu-img')}")
    path = tmp_path / "empty.qcow2"
    create_empty(path, 3 << 30)
    assert data_disk_format(path) == "qcow2"
    subprocess.run([program, "check", "-q", "-f", "qcow2", path], check=True)
    said = subprocess.run([program, "info", "--output=json", path], capture_output=True, check=True)
    info = json.loads(said.stdout)
    assert (info["virtual-size"], info.get("backing-filename")) == (3 << 30, None)
