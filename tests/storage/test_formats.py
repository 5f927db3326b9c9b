"""Disk images of unknown origin, read by our own parser first."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cerne.errors import CerneError, ImageError, InputError
from cerne.host.programs import find_program, install_command
from cerne.storage.formats import data_disk_format, require_self_contained
from cerne.storage.overlay import create_empty
from cerne.storage.signatures import SIGNATURES, Signature

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
        ({"features": 1 << 40}, "unknown features"),
        ({"features": 2}, "marked as corrupt"),
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
    except CerneError as error:
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
        _qcow2(features=1 << 1),
    ],
)
def test_what_cannot_be_used_as_it_is_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "disk"
    path.write_bytes(content)
    with pytest.raises(ImageError):
        data_disk_format(path)


@_HOSTILE
@given(st.sampled_from(SIGNATURES), st.binary(max_size=2048), st.sampled_from((None, "qcow2")))
def test_what_looks_like_a_format_is_never_taken_for_raw(
    tmp_path: Path, signature: Signature, rest: bytes, named: str | None
) -> None:
    path = tmp_path / "any"
    path.write_bytes(_looking_like(signature, rest))
    for look in (data_disk_format, require_self_contained):
        try:
            found = look(path, named)
        except CerneError as error:
            assert error.hint
        else:
            assert getattr(found, "format", found) == signature.format


@pytest.mark.parametrize("signature", SIGNATURES, ids=lambda each: each.format)
def test_only_its_owner_says_that_a_disk_which_looks_like_another_is_raw(
    tmp_path: Path, signature: Signature
) -> None:
    path = tmp_path / "disk"
    path.write_bytes(_looking_like(signature, bytes(4096)))
    if signature.format != "qcow2":
        with pytest.raises(ImageError) as refused:
            data_disk_format(path)
        assert signature.unpack or f"{path}:format=raw" in refused.value.hint
    assert data_disk_format(path, "raw") == "raw"
    found = require_self_contained(path, "raw")
    assert (found.format, found.virtual_size) == ("raw", 4096)


def _looking_like(signature: Signature, rest: bytes) -> bytes:
    content = bytearray(rest.ljust(1024, b"\0"))
    at = signature.offset if signature.offset >= 0 else len(content) + signature.offset
    if signature.offset < 0 or signature.offset:
        # Nothing at its beginning is known before that.
        content[:8] = bytes(8)
    content[at : at + len(signature.magic)] = signature.magic
    return bytes(content)


_MADE = ("qcow", "qcow2", "qed", "vdi", "vhdx", "vmdk", "vpc", "parallels")
_VARIANTS = (
    *((name, ()) for name in _MADE),
    ("vpc", ("-o", "subformat=fixed")),
    ("vpc", ("-o", "subformat=fixed,force_size=on")),
    ("vmdk", ("-o", "subformat=monolithicFlat")),
    ("vmdk", ("-o", "subformat=twoGbMaxExtentSparse")),
    ("vmdk", ("-o", "subformat=streamOptimized")),
    ("luks", ("--object", "secret,id=s,data=x", "-o", "key-secret=s,iter-time=10")),
)


@pytest.mark.parametrize(("name", "options"), _VARIANTS)
def test_no_format_that_qemu_img_writes_is_taken_for_raw(
    tmp_path: Path, name: str, options: tuple[str, ...]
) -> None:
    program = find_program("qemu-img")
    if program is None:
        pytest.skip(f"qemu-img is not installed: {install_command('qemu-img')}")
    path = tmp_path / "disk"
    command = [str(program), "create", "-q", "-f", name, *options, str(path), "8M"]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip(f"this qemu-img does not write {name}")
    if name == "qcow2":
        assert data_disk_format(path) == "qcow2"
        return
    before = path.read_bytes()
    with pytest.raises(ImageError):
        data_disk_format(path)
    assert path.read_bytes() == before


def test_a_descriptor_is_known_whatever_its_comments_say(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b'# anything\n\nversion=1\nRW 8 FLAT "/etc/shadow" 0\n'.ljust(512, b"\n"))
    with pytest.raises(ImageError, match="refers to other files"):
        data_disk_format(path)
    with pytest.raises(ImageError, match="refers to other files"):
        require_self_contained(path)


def test_a_disk_that_was_not_closed_in_order(tmp_path: Path) -> None:
    # A machine that was killed leaves such a disk, and whoever writes to it repairs it.
    path = tmp_path / "disk"
    path.write_bytes(_qcow2(features=1))
    assert data_disk_format(path) == "qcow2"
    with pytest.raises(ImageError, match="not closed in order") as refused:
        require_self_contained(path)
    assert "qemu-img check -r all -f qcow2" in refused.value.hint


def test_the_log_of_a_vhdx(tmp_path: Path) -> None:
    program = find_program("qemu-img")
    if program is None:
        pytest.skip(f"qemu-img is not installed: {install_command('qemu-img')}")
    path = tmp_path / "disk.vhdx"
    subprocess.run([program, "create", "-q", "-f", "vhdx", path, "8M"], check=True)
    assert require_self_contained(path).format == "vhdx"
    content = bytearray(path.read_bytes())
    for header in (64 << 10, 128 << 10):
        content[header + 48] = 1
    path.write_bytes(content)
    with pytest.raises(ImageError, match="not closed in order"):
        require_self_contained(path)


@pytest.mark.parametrize(
    ("kind", "place", "said"),
    [
        (4, 0, "refers to other"),
        (2, 0, "kind of VHD, 2,"),
        (3, 1024, "kind of VHD, 3,"),
        (9, 1024, "kind of VHD, 9,"),
    ],
)
def test_what_the_footer_of_a_vhd_may_not_say(
    tmp_path: Path, kind: int, place: int, said: str
) -> None:
    footer = bytearray(512)
    footer[:8] = b"conectix"
    footer[48:56] = (512).to_bytes(8, "big")
    footer[60:64] = kind.to_bytes(4, "big")
    path = tmp_path / "disk"
    content = bytearray(1536)
    content[place : place + 512] = footer
    path.write_bytes(content)
    with pytest.raises(ImageError, match=said):
        require_self_contained(path)


def test_a_pipe_is_no_disk(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(ImageError, match="neither a file nor a block device"):
        data_disk_format(path)


def test_a_vmdk_that_ends_within_a_sector(tmp_path: Path) -> None:
    raw, path = tmp_path / "raw", tmp_path / "stream.vmdk"
    raw.write_bytes(bytes(1 << 20))
    how = ["-O", "vmdk", "-o", "subformat=streamOptimized"]
    subprocess.run(["qemu-img", "convert", "-f", "raw", *how, raw, path], check=True)
    whole = bytearray(path.read_bytes())
    # What QEMU writes has its header at the beginning: the footer is made of it.
    footer = whole[:512]
    whole[56:64] = b"\xff" * 8
    path.write_bytes(bytes(whole) + bytes(512) + footer + bytes(100))
    assert require_self_contained(path).format == "vmdk"
    path.write_bytes(bytes(whole) + bytes(512) + bytes(512) + bytes(100))
    with pytest.raises(ImageError, match="two headers differ"):
        require_self_contained(path)


def test_the_format_that_is_named(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(_qcow2())
    assert data_disk_format(path, "qcow2") == "qcow2"
    with pytest.raises(ImageError, match="looks like qcow2"):
        data_disk_format(path, "vmdk")
    with pytest.raises(InputError, match="not a disk format"):
        data_disk_format(path, "exe")
    path.write_bytes(bytes(1000))
    with pytest.raises(ImageError, match="1000 bytes"):
        data_disk_format(path, "raw")


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


def test_a_parent_of_a_vmdk_is_found_where_qemu_looks_for_it(tmp_path: Path) -> None:
    raw, path = tmp_path / "raw", tmp_path / "disk.vmdk"
    raw.write_bytes(bytes(1 << 20))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "vmdk", raw, path], check=True)
    content = bytearray(path.read_bytes())
    offset, length = struct.unpack_from("<QQ", content, 28)
    descriptor = content[offset * 512 : (offset + length) * 512]
    # The header names a descriptor at the end, and QEMU reads the second sector even so.
    content += bytes(-len(content) % 512)
    struct.pack_into("<Q", content, 28, len(content) // 512)
    hint = b'parentFileNameHint="/etc/shadow"\n'
    content[512 : 512 + len(hint)] = hint
    path.write_bytes(content + descriptor)
    with pytest.raises(ImageError, match="it has a parent disk"):
        require_self_contained(path)
