"""Disk images of unknown origin, read by our own parser first."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cerne.errors import ImageError
from cerne.storage.formats import require_self_contained

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
