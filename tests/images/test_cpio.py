"""The archive that the kernel unpacks."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cerne.images.cpio import CpioWriter

_NAMES = st.text("abcXYZ019._-", min_size=1, max_size=20).filter(lambda n: n not in (".", ".."))


def _archive(files: dict[str, bytes]) -> bytes:
    written = io.BytesIO()
    writer = CpioWriter(written)
    for path, content in files.items():
        writer.file(path, content, 0o640)
    writer.close()
    return written.getvalue()


def _read(archive: bytes) -> dict[str, bytes]:
    """The regular files of a newc archive, read as the format's document says."""
    files: dict[str, bytes] = {}
    offset = 0
    while True:
        assert archive[offset : offset + 6] == b"070701"
        fields = [int(archive[offset + 6 + 8 * n : offset + 14 + 8 * n], 16) for n in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[offset + 110 : offset + 110 + name_size - 1].decode()
        start = (offset + 110 + name_size + 3) & ~3
        if name == "TRAILER!!!":
            return files
        if mode & 0o170000 == 0o100000:
            files[name] = archive[start : start + size]
        offset = (start + size + 3) & ~3


@given(st.dictionaries(_NAMES, st.binary(max_size=100), max_size=5))
def test_what_is_written_is_read_again(files: dict[str, bytes]) -> None:
    assert _read(_archive(files)) == files


def test_parents_come_first_and_once() -> None:
    archive = _archive({"a/b/one": b"1", "a/b/two": b"2"})
    assert archive.count(b"a/b\0") == 1
    assert archive.index(b"a\0") < archive.index(b"a/b\0") < archive.index(b"a/b/one\0")


def test_equal_content_makes_an_equal_archive() -> None:
    assert _archive({"a": b"1"}) == _archive({"a": b"1"})


def test_cpio_itself_reads_it(tmp_path: Path) -> None:
    written = io.BytesIO()
    writer = CpioWriter(written)
    writer.file("bin/program", b"x" * 5000, 0o755)
    writer.link("link", "bin/program")
    writer.device("dev/console", 5, 1)
    writer.close()
    try:
        listed = subprocess.run(
            ["cpio", "-t", "--quiet"], input=written.getvalue(), capture_output=True, check=True
        )
    except FileNotFoundError:
        pytest.skip("cpio is not installed: sudo apt-get install -y cpio")
    assert listed.stdout.decode().split() == ["bin", "bin/program", "link", "dev", "dev/console"]


@pytest.mark.parametrize("path", ["../x", "/x", "a/../../x"])
def test_a_path_that_leads_out_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="not a path inside"):
        _archive({path: b""})
