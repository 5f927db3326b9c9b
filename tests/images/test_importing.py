"""Disk images from elsewhere: none is trusted."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import subprocess
import threading
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from cerne.errors import (
    CerneError,
    ChecksumError,
    ImageError,
    InputError,
    NotFoundError,
    StorageError,
)
from cerne.images import ImageStore
from cerne.images.download import _why
from cerne.images.importing import name_of


def _made(path: Path, *options: str, size: str = "1M") -> Path:
    subprocess.run(["qemu-img", "create", "-q", *options, str(path), size], check=True)
    return path


@pytest.mark.parametrize("kind", ["qcow2", "raw", "vmdk", "vdi", "vhdx"])
def test_formats_that_are_taken(store: ImageStore, tmp_path: Path, kind: str) -> None:
    image = store.import_(str(_made(tmp_path / f"disk.{kind}", "-f", kind, size="8M")))
    assert image.name == "disk"
    assert image.disk is not None
    assert (image.disk.format, image.disk.virtual_size) == ("qcow2", 8 << 20)


@pytest.mark.parametrize("kind", ["fixed", "dynamic"])
@pytest.mark.parametrize("creator", [b"qemu", b"qem2", b"vbox"])
def test_a_vhd_is_as_large_as_its_footer_says(
    store: ImageStore, tmp_path: Path, kind: str, creator: bytes
) -> None:
    content = b"\x01" * (9 << 20)
    raw, vhd, out = (tmp_path / name for name in ("disk.raw", "disk.vhd", "out.raw"))
    raw.write_bytes(content)
    options = f"subformat={kind},force_size=on"
    command = ["qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", options, str(raw), str(vhd)]
    subprocess.run(command, check=True)
    # By the geometry of such a disk, which some programs' files have QEMU take, its end is lost.
    with vhd.open("r+b") as file:
        for place in (0, vhd.stat().st_size - 512):
            file.seek(place)
            footer = bytearray(file.read(512))
            if footer.startswith(b"conectix"):
                footer[28:32], footer[64:68] = creator, bytes(4)
                footer[64:68] = (~sum(footer) & 0xFFFFFFFF).to_bytes(4, "big")
                file.seek(place)
                file.write(footer)
    image = store.import_(str(vhd))
    assert image.name == "disk"
    assert image.disk is not None
    assert image.disk.virtual_size == len(content)
    store.export("disk", out, "raw")
    assert out.read_bytes() == content


def test_an_image_that_is_marked_as_corrupt_is_refused(store: ImageStore, tmp_path: Path) -> None:
    path = _made(tmp_path / "bad.qcow2", "-f", "qcow2")
    with path.open("r+b") as file:
        file.seek(79)
        file.write(b"\2")
    with pytest.raises(ImageError, match="marked as corrupt") as refused:
        store.import_(str(path))
    assert "qemu-img check" in refused.value.hint
    assert list(store.list()) == []


@pytest.mark.parametrize("kind", ["qed", "parallels", "qcow"])
def test_formats_that_are_refused_unless_they_are_named_raw(
    store: ImageStore, tmp_path: Path, kind: str
) -> None:
    path = _made(tmp_path / f"disk.{kind}", "-f", kind, size="8M")
    with path.open("r+b") as file:
        file.truncate(-(-path.stat().st_size // 512) * 512)
    with pytest.raises(ImageError, match="does not take") as refused:
        store.import_(str(path), "disk")
    assert "--format raw" in refused.value.hint
    image = store.import_(str(path), "disk", format_="raw")
    assert image.disk is not None
    assert image.disk.virtual_size == path.stat().st_size


def test_an_iso_is_taken(store: ImageStore, tmp_path: Path) -> None:
    path = tmp_path / "small.iso"
    path.write_bytes(bytes(32769) + b"CD001" + bytes(40960 - 32774))
    assert store.import_(str(path)).name == "small"


@pytest.mark.parametrize(
    "options",
    [
        ("-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/shadow"),
        ("-f", "qcow2", "-o", "data_file=DATA,data_file_raw=on"),
        ("-f", "vmdk", "-o", "subformat=monolithicFlat"),
        ("-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse"),
    ],
)
def test_an_image_that_refers_to_another_file_is_refused(
    store: ImageStore, tmp_path: Path, options: tuple[str, ...]
) -> None:
    words = [option.replace("DATA", str(tmp_path / "data")) for option in options]
    path = _made(tmp_path / "thief", *words)
    with pytest.raises(ImageError, match="refers to other files"):
        store.import_(str(path), "thief")
    assert list(store.list()) == []


def test_a_truncated_image_is_refused(store: ImageStore, tmp_path: Path) -> None:
    path = _made(tmp_path / "whole.qcow2", "-f", "qcow2", size="64M")
    for length in (4, 20, 72, 104, 70_000):
        cut = tmp_path / "cut.qcow2"
        cut.write_bytes(path.read_bytes()[:length])
        with pytest.raises(ImageError):
            store.import_(str(cut))
    assert list(store.list()) == []


def test_what_is_no_image_is_refused(store: ImageStore, tmp_path: Path) -> None:
    for content in (b"", b"text\n", b"#!/bin/sh\n" * 512, b"PK\3\4" + bytes(508)):
        path = tmp_path / "file"
        path.write_bytes(content)
        with pytest.raises(ImageError, match="not a disk image"):
            store.import_(str(path))
    with pytest.raises(NotFoundError):
        store.import_(str(tmp_path / "missing"))
    with pytest.raises(ImageError, match="is not a file"):
        store.import_(str(tmp_path))


def test_a_bomb_is_not_unpacked(store: ImageStore, tmp_path: Path) -> None:
    path = tmp_path / "bomb.img.gz"
    with gzip.open(path, "wb") as file:
        file.write(bytes(50_000_000))
    with pytest.raises(ImageError, match="not a disk image"):
        store.import_(str(path))


def test_a_disk_that_claims_to_be_enormous_is_refused(store: ImageStore, tmp_path: Path) -> None:
    path = _made(tmp_path / "huge.qcow2", "-f", "qcow2", size="100T")
    with pytest.raises(ImageError, match="100T"):
        store.import_(str(path))


def test_a_disk_that_unpacks_without_end_is_refused(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = tmp_path / "ones.raw"
    raw.write_bytes(b"\x01" * (8 << 20))
    bomb = tmp_path / "bomb.qcow2"
    command = ["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", str(raw), str(bomb)]
    subprocess.run(command, check=True)
    monkeypatch.setattr("cerne.images.importing._ALWAYS_ALLOWED", 0)
    monkeypatch.setattr("cerne.images.importing._EXPANSION", 4)
    assert bomb.stat().st_size * 4 < raw.stat().st_size
    with pytest.raises(ImageError, match="times its size"):
        store.import_(str(bomb))
    assert list(store.list()) == []


def test_what_reads_a_disk_takes_a_bounded_memory(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _made(tmp_path / "good.qcow2", "-f", "qcow2", size="8M")
    monkeypatch.setattr("cerne.images.importing._LARGEST_PROCESS", 1 << 20)
    with pytest.raises(ImageError, match="is not readable as qcow2"):
        store.import_(str(path))


def test_a_disk_whose_tables_lead_beyond_its_end_is_refused(
    store: ImageStore, tmp_path: Path
) -> None:
    raw = tmp_path / "ones.raw"
    raw.write_bytes(b"\x01" * (8 << 20))
    whole, cut = tmp_path / "whole.qcow2", tmp_path / "cut.qcow2"
    subprocess.run(
        ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(whole)], check=True
    )
    cut.write_bytes(whole.read_bytes()[: 4 << 20])
    with pytest.raises(ImageError, match="is not readable as qcow2") as caught:
        store.import_(str(cut))
    assert "json:" not in caught.value.message


def test_a_vmdk_with_a_parent_or_no_data_is_refused(store: ImageStore, tmp_path: Path) -> None:
    whole = _made(tmp_path / "whole.vmdk", "-f", "vmdk", size="8M").read_bytes()
    parent = whole.replace(b"# The Disk Data Base", b'parentFileNameHint="/x"\n')
    empty = whole[:12] + bytes(8) + whole[20:]
    for content in (parent, empty):
        path = tmp_path / "thief.vmdk"
        path.write_bytes(content)
        with pytest.raises(ImageError, match="refers to other files"):
            store.import_(str(path))


def test_checksums(store: ImageStore, raw: Path) -> None:
    digest = hashlib.sha256(raw.read_bytes()).hexdigest()
    with pytest.raises(ChecksumError):
        store.import_(str(raw), checksum="sha256:" + "0" * 64)
    with pytest.raises(InputError, match="not a checksum"):
        store.import_(str(raw), checksum="md5:1")
    assert store.import_(str(raw), checksum=f"sha256:{digest}").name == "blank"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("https://x.org/a/debian-12-genericcloud-amd64.qcow2?x=1", "debian-12-genericcloud-amd64"),
        ("/tmp/My Disk.IMG", "my-disk"),
        ("file:///tmp/a.raw", "a"),
    ],
)
def test_names_made_of_sources(source: str, name: str) -> None:
    assert name_of(source) == name


def test_a_source_without_a_name() -> None:
    with pytest.raises(InputError):
        name_of("https://x.org/")


class _Server(http.server.ThreadingHTTPServer):
    """Serves one content, and breaks off after `breaks_off_after` bytes where that is set."""

    content = b""
    breaks_off_after: int | None = None
    length: str | None = None
    """What it says that it is long, where that is not true."""
    ranges: list[str | None]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        if self.path != "/disk.raw":
            self.send_error(404)
            return
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if start >= len(self.server.content):
            self.send_error(416)
            return
        body = self.server.content[start:]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", self.server.length or str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.breaks_off_after])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(raw: Path) -> Iterator[_Server]:
    made = _Server(("127.0.0.1", 0), _Handler)
    made.content, made.ranges = raw.read_bytes(), []
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def test_an_address_is_fetched_and_resumed(store: ImageStore, server: _Server) -> None:
    url = f"http://127.0.0.1:{server.server_port}/disk.raw"
    checksum = "sha256:" + hashlib.sha256(server.content).hexdigest()
    server.breaks_off_after = 300_000
    with pytest.raises(ImageError) as caught:
        store.import_(url, checksum=checksum)
    assert "the download resumes" in caught.value.hint
    server.breaks_off_after = None
    told: list[tuple[int, int | None]] = []
    image = store.import_(
        url, checksum=checksum, progress=lambda _, done, total: told.append((done, total))
    )
    assert image.name == "disk"
    assert server.ranges == [None, "bytes=300000-"]
    assert (len(server.content), len(server.content)) in told
    store.import_(url, "again", checksum=checksum)
    assert len(server.ranges) == 2


def test_a_wrong_checksum_is_refused_and_not_kept(store: ImageStore, server: _Server) -> None:
    url = f"http://127.0.0.1:{server.server_port}/disk.raw"
    with pytest.raises(ChecksumError):
        store.import_(url, checksum="sha256:" + "0" * 64)
    assert list((store._cache / "downloads").glob("*.part")) == []
    assert list(store.list()) == []


@pytest.mark.parametrize(
    ("length", "error"),
    [
        (str(1 << 60), ImageError),
        (str((1 << 41) - 1), StorageError),
        ("9" * 5000, ImageError),
        ("without", ImageError),
    ],
)
def test_more_than_fits_is_refused_and_not_kept(
    store: ImageStore,
    server: _Server,
    monkeypatch: pytest.MonkeyPatch,
    length: str,
    error: type[CerneError],
) -> None:
    server.length = length
    monkeypatch.setattr("shutil.disk_usage", lambda _place: SimpleNamespace(free=100_000))
    if not length.isdecimal() or len(length) > 20:
        monkeypatch.setattr("cerne.images.download._LARGEST", 100_000)
    with pytest.raises(error):
        store.import_(f"http://127.0.0.1:{server.server_port}/disk.raw")
    assert list((store._cache / "downloads").glob("*.part")) == []


def test_what_broke_off_and_has_no_checksum_is_not_kept(store: ImageStore, server: _Server) -> None:
    server.breaks_off_after = 300_000
    with pytest.raises(ImageError, match=r"the download of .* broke"):
        store.import_(f"http://127.0.0.1:{server.server_port}/disk.raw")
    assert list((store._cache / "downloads").glob("*.part")) == []


def test_an_address_that_has_nothing(store: ImageStore, server: _Server) -> None:
    with pytest.raises(NotFoundError):
        store.import_(f"http://127.0.0.1:{server.server_port}/other.raw")
    with pytest.raises(ImageError, match=r"fetching .* failed"):
        store.import_("http://127.0.0.1:1/disk.raw")


def test_a_host_that_has_no_address_is_told_without_the_systems_number() -> None:
    error = urllib.error.URLError(OSError(-2, "Name or service not known"))
    assert _why(error) == "Name or service not known"


def test_an_address_that_is_not_fetched_is_said_whole(store: ImageStore) -> None:
    with pytest.raises(InputError, match="ftp://host/disk is not an address"):
        store.import_("ftp://host/disk")
