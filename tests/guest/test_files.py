"""Copies into a guest and out of it; and what a hostile guest may send for a file."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cerne.errors import (
    CerneError,
    ConflictError,
    GuestError,
    InputError,
    NotFoundError,
    StorageError,
)
from cerne.guest import GuestAgent, files, wire
from cerne.guest.session import Session
from cerne.guest.wire import Entry, EntryKind, FrameType, encode
from cerne.units import MIB, TIB

Pair = tuple[Session, socket.socket]
Listing = dict[str, tuple[int, int, bytes]]

_DONE = encode(FrameType.DONE)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with all that is kept, and some that is left out."""
    root = tmp_path / "tree"
    (root / "empty directory").mkdir(parents=True)
    (root / "deep" / "er" / "still").mkdir(parents=True)
    (root / "deep" / "er" / "still" / "file").write_bytes(b"deep")
    (root / "empty").touch()
    (root / "big").write_bytes(os.urandom(1_000_000))
    (root / "program").write_text("#!/bin/sh\n")
    (root / "program").chmod(0o755)
    (root / "secret").write_text("x")
    (root / "secret").chmod(0o600)
    (root / os.fsdecode(b"no utf-8 \xff")).write_text("y")
    (root / "link").symlink_to("deep/er")
    (root / "dangling").symlink_to("/no/such/file")
    os.mkfifo(root / "fifo")
    os.utime(root / "secret", ns=(1, 1_234_567_890_123_456_789))
    os.utime(root / "deep" / "er", ns=(1, 987_654_321_000_000_001))
    return root


def _listing(root: Path) -> Listing:
    found: Listing = {}
    for path in (root, *root.rglob("*")):
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            content = os.fsencode(path.readlink())
        elif stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        elif stat.S_ISDIR(status.st_mode):
            content = b"directory"
        else:
            continue
        found[str(path.relative_to(root))] = (status.st_mode, status.st_mtime_ns, content)
    return found


def _leftovers(directory: Path) -> list[Path]:
    return list(directory.rglob(".cerne-*"))


def test_a_tree_there_and_back(agent: GuestAgent, tree: Path, tmp_path: Path) -> None:
    agent.push(tree, str(tmp_path / "there"))
    assert _listing(tmp_path / "there") == _listing(tree)
    assert not (tmp_path / "there" / "fifo").exists()
    agent.pull(str(tmp_path / "there"), tmp_path / "back")
    assert _listing(tmp_path / "back") == _listing(tree)
    assert _leftovers(tmp_path) == []


def test_into_a_directory_that_is_there(agent: GuestAgent, tree: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    agent.push(tree, str(tmp_path / "there"))
    agent.push(tree / "secret", f"{tmp_path}/there/")
    assert (tmp_path / "there" / "secret").read_text() == "x"
    assert _listing(tmp_path / "there" / "tree") == _listing(tree)
    (tmp_path / "back").mkdir()
    agent.pull(str(tmp_path / "there" / "tree"), tmp_path / "back")
    assert _listing(tmp_path / "back" / "tree") == _listing(tree)


def test_over_what_is_there(agent: GuestAgent, tree: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    for _ in range(2):
        agent.push(tree, str(there) if not there.exists() else str(tmp_path / "other"))
    (there / "own").write_text("mine")
    (tmp_path / "in").mkdir()
    shutil.copytree(there, tmp_path / "in" / "there", symlinks=True, ignore=lambda *_: ["fifo"])
    (tmp_path / "in" / "there" / "big").write_text("old")
    agent.pull(str(there), tmp_path / "in")
    assert (tmp_path / "in" / "there" / "own").read_text() == "mine"
    assert _listing(tmp_path / "in" / "there") == _listing(there)


def test_one_file(agent: GuestAgent, tree: Path, tmp_path: Path) -> None:
    agent.push(tree / "big", str(tmp_path / "copy"))
    agent.pull(str(tmp_path / "copy"), tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tree / "big").read_bytes()


def test_a_link_that_is_named_is_followed(agent: GuestAgent, tree: Path, tmp_path: Path) -> None:
    (tmp_path / "named").symlink_to(tree / "secret")
    agent.push(tmp_path / "named", str(tmp_path / "pushed"))
    agent.pull(str(tmp_path / "named"), tmp_path / "pulled")
    for copied in (tmp_path / "pushed", tmp_path / "pulled"):
        assert copied.is_file()
        assert not copied.is_symlink()


def test_a_large_tree(agent: GuestAgent, tmp_path: Path) -> None:
    for number in range(1000):
        path = tmp_path / "many" / str(number % 10) / f"file-{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(number))
    agent.push(tmp_path / "many", str(tmp_path / "there"))
    agent.pull(str(tmp_path / "there"), tmp_path / "back")
    assert _listing(tmp_path / "back") == _listing(tmp_path / "many")


@pytest.mark.usefixtures("root")
def test_a_file_keeps_its_owner_and_loses_setuid(agent: GuestAgent, tmp_path: Path) -> None:
    (tmp_path / "new").write_text("new")
    (tmp_path / "new").chmod(0o4755)
    (tmp_path / "old").write_text("old")
    os.chown(tmp_path / "old", 1234, 1234)
    agent.push(tmp_path / "new", str(tmp_path / "old"))
    status = (tmp_path / "old").stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (1234, 0o755)


@pytest.mark.parametrize(
    ("remote", "words"),
    [
        ("/no/such/directory/file", "cannot write /no/such/directory/file: No such file"),
        ("/no/such/directory/", "there is no directory /no/such/directory/"),
        ("", "names no place"),
        ("/" + "x" * 5000, "File name too long|Filename too long"),
    ],
)
def test_what_the_guest_cannot_write(
    agent: GuestAgent, tree: Path, remote: str, words: str
) -> None:
    with pytest.raises(GuestError, match=words):
        agent.push(tree / "big", remote)
    assert agent.run(["true"]).status == 0


@pytest.mark.parametrize("remote", ["/no/such/file", "/dev/null", "/" + "x" * 5000])
def test_what_the_guest_cannot_read(agent: GuestAgent, tmp_path: Path, remote: str) -> None:
    with pytest.raises(GuestError):
        agent.pull(remote, tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


def test_what_this_host_cannot_read(agent: GuestAgent, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=f"see: ls -l {tmp_path}"):
        agent.push(tmp_path / "gone", "/tmp")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InputError, match="neither a file nor a directory"):
        agent.push(tmp_path / "fifo", "/tmp")


def test_places_that_cannot_be_pulled_to(agent: GuestAgent, tree: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=f"mkdir -p {tmp_path}/no"):
        agent.pull(str(tree / "big"), tmp_path / "no" / "such")
    with pytest.raises(InputError, match="no last component"):
        agent.pull("/", tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConflictError, match="not a directory"):
        agent.pull(str(tree), tmp_path / "file")
    with pytest.raises(StorageError):
        (tmp_path / "in" / "big").mkdir(parents=True)
        agent.pull(str(tree / "big"), tmp_path / "in")
    assert _leftovers(tmp_path) == []


@pytest.mark.usefixtures("root")
def test_a_full_disk_in_the_guest(agent: GuestAgent, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = agent.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)])
    if mounted.status != 0:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode()}")
    try:
        (tmp_path / "big").write_bytes(bytes(20_000_000))
        with pytest.raises(GuestError, match=r"cannot write .*: No space left on device"):
            agent.push(tmp_path / "big", str(small))
        assert list(small.iterdir()) == []
        assert agent.run(["true"]).status == 0
    finally:
        agent.run(["umount", str(small)])


def test_a_file_that_is_shortened_on_the_way(
    agent: GuestAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    reads = iter([b"x" * 1000, b""])
    monkeypatch.setattr(os, "read", lambda *_: next(reads))
    with pytest.raises(InputError, match="shortened"):
        agent.push(tmp_path / "file", str(tmp_path / "copy"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_sparse_file_that_is_shortened_on_the_way(
    agent: GuestAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    os.truncate(tmp_path / "file", MIB)
    seek = os.lseek

    def shorten(descriptor: int, offset: int, whence: int) -> int:
        os.truncate(tmp_path / "file", 10)
        return seek(descriptor, offset, whence)

    monkeypatch.setattr(os, "lseek", shorten)
    with pytest.raises(InputError, match="shortened"):
        agent.push(tmp_path / "file", str(tmp_path / "copy"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def of_version_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides speak as before version 2."""
    monkeypatch.setattr(wire, "VERSION", 1)


def _sparse(path: Path) -> Path:
    with path.open("wb") as file:
        for place in (0, 3 * MIB, 9 * MIB):
            file.seek(place)
            file.write(os.urandom(100_000))
        file.truncate(16 * MIB)
    return path


def test_holes_stay_holes(agent: GuestAgent, tmp_path: Path) -> None:
    sparse = _sparse(tmp_path / "sparse")
    (tmp_path / "nothing").touch()
    os.truncate(tmp_path / "nothing", 512 * MIB)
    for name in ("sparse", "nothing"):
        agent.push(tmp_path / name, str(tmp_path / "there"))
        agent.pull(str(tmp_path / "there"), tmp_path / "back")
        for copied in (tmp_path / "there", tmp_path / "back"):
            assert copied.stat().st_size == (tmp_path / name).stat().st_size
            assert copied.stat().st_blocks * 512 < MIB
        if name == "sparse":
            assert (tmp_path / "back").read_bytes() == sparse.read_bytes()


@pytest.mark.usefixtures("of_version_1")
def test_a_side_that_knows_no_holes_gets_the_zeros(agent: GuestAgent, tmp_path: Path) -> None:
    sparse = _sparse(tmp_path / "sparse")
    agent.push(sparse, str(tmp_path / "there"))
    agent.pull(str(tmp_path / "there"), tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == sparse.read_bytes()


_TOLD_AS_EMPTY = Path("/proc/version")
_TOLD_AS_A_PAGE = Path("/sys/kernel/notes"), Path("/sys/kernel/mm/transparent_hugepage/enabled")


def test_files_whose_size_is_not_told_are_read_to_their_end(
    agent: GuestAgent, tmp_path: Path
) -> None:
    for path in (_TOLD_AS_EMPTY, *_TOLD_AS_A_PAGE):
        if not path.exists():
            continue
        agent.push(path, str(tmp_path / "pushed"))
        agent.pull(str(path), tmp_path / "pulled")
        for copied in (tmp_path / "pushed", tmp_path / "pulled"):
            assert copied.read_bytes() == path.read_bytes() != b""


@pytest.mark.usefixtures("of_version_1")
def test_an_agent_that_must_know_sizes_is_given_what_was_read(
    agent: GuestAgent, tmp_path: Path
) -> None:
    agent.push(_TOLD_AS_EMPTY, str(tmp_path / "pushed"))
    assert (tmp_path / "pushed").read_bytes() == _TOLD_AS_EMPTY.read_bytes()


def _entry(kind: EntryKind, name: bytes = b"", size: int = 0, target: bytes = b"") -> bytes:
    return encode(FrameType.ENTRY, Entry(kind, 0o644, 0, 0, size, name=name, target=target).pack())


_DIRECTORY = _entry(EntryKind.DIRECTORY)
_LEAVE = _entry(EntryKind.LEAVE)


@pytest.mark.parametrize(
    "frames",
    [
        _DIRECTORY + _entry(EntryKind.FILE, b"../escaped"),
        _DIRECTORY + _entry(EntryKind.FILE, b".."),
        _DIRECTORY + _entry(EntryKind.FILE, b"."),
        _DIRECTORY + _entry(EntryKind.FILE, b""),
        _DIRECTORY + _entry(EntryKind.FILE, b"/etc/escaped"),
        _DIRECTORY + _entry(EntryKind.FILE, b"a\0b"),
        _DIRECTORY + _entry(EntryKind.FILE, b"x" * 300),
        _DIRECTORY + _entry(EntryKind.DIRECTORY, b".."),
        _DIRECTORY + _entry(EntryKind.SYMLINK, b"a/b", target=b"x"),
        _DIRECTORY + _entry(EntryKind.SYMLINK, b"a"),
        _DIRECTORY + _LEAVE + _LEAVE,
        _DIRECTORY + _LEAVE + _entry(EntryKind.FILE, b"after"),
        _DIRECTORY + _DONE,
        _DIRECTORY + _entry(EntryKind.DIRECTORY, b"d") * 300,
        _entry(EntryKind.FILE, b"f", 5) + _DONE,
        _entry(EntryKind.FILE, b"f", 5) + encode(FrameType.DATA, b"sixsix"),
        _entry(EntryKind.FILE, b"f", 5) + _entry(EntryKind.FILE, b"g"),
        _entry(EntryKind.FILE, b"f") + encode(FrameType.DATA, b"x"),
        encode(FrameType.DATA, b"x"),
        encode(FrameType.STDOUT, b"x"),
        _LEAVE,
        _DONE,
    ],
)
def test_a_hostile_tree(session_pair: Pair, tmp_path: Path, frames: bytes) -> None:
    session, far = session_pair
    far.sendall(frames)
    (tmp_path / "in").mkdir()
    with pytest.raises(GuestError):
        files.pull(session, "/thing", tmp_path / "in" / "copy")
    assert list(tmp_path.iterdir()) == [tmp_path / "in"]
    if not frames.startswith(_entry(EntryKind.FILE, b"f")):
        assert list((tmp_path / "in").iterdir()) == []


def test_links_are_not_followed_out(session_pair: Pair, tmp_path: Path) -> None:
    session, far = session_pair
    outside = tmp_path / "outside"
    outside.mkdir()
    far.sendall(
        _DIRECTORY
        + _entry(EntryKind.SYMLINK, b"way-out", target=os.fsencode(outside))
        + _entry(EntryKind.DIRECTORY, b"way-out")
        + _entry(EntryKind.FILE, b"planted")
    )
    with pytest.raises(ConflictError, match="not a directory"):
        files.pull(session, "/thing", tmp_path / "copy")
    assert list(outside.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["outside"]


def test_a_link_in_the_place_of_a_file_is_replaced(session_pair: Pair, tmp_path: Path) -> None:
    session, far = session_pair
    (tmp_path / "kept").write_text("kept")
    (tmp_path / "copy").symlink_to("kept")
    far.sendall(_entry(EntryKind.FILE, b"", 3) + encode(FrameType.DATA, b"new") + _DONE)
    files.pull(session, "/thing", tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "new"
    assert not (tmp_path / "copy").is_symlink()
    assert (tmp_path / "kept").read_text() == "kept"


def test_times_beyond_all_measure(session_pair: Pair, tmp_path: Path) -> None:
    session, far = session_pair
    entry = Entry(EntryKind.FILE, 0o177777, 2**63 - 1, 999_999_999)
    far.sendall(encode(FrameType.ENTRY, entry.pack()) + _DONE)
    files.pull(session, "/thing", tmp_path / "copy")
    assert stat.S_IMODE((tmp_path / "copy").stat().st_mode) == 0o777


_NAMES = st.sampled_from([b"a", b"b", b"..", b".", b"", b"a/b", b"/", b"a\0", b"\xff"])
_STEPS = st.one_of(
    st.builds(_entry, st.sampled_from(EntryKind), _NAMES, st.integers(0, 20), _NAMES),
    st.builds(lambda data: encode(FrameType.DATA, data), st.binary(max_size=20)),
    st.builds(lambda length: encode(FrameType.HOLE, wire.HOLE.pack(length)), st.integers(0, 20)),
    st.sampled_from([_DONE, encode(FrameType.FILE_END)]),
)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(_STEPS), st.sampled_from([1, wire.HOLES_VERSION]))
def test_nothing_leads_outside(steps: list[bytes], version: int) -> None:
    directory = Path(tempfile.mkdtemp(prefix="cerne-"))
    (directory / "in").mkdir()
    near, far = socket.socketpair()
    try:
        with far, Session(near) as session, contextlib.suppress(CerneError):
            session.version = version
            far.sendall(b"".join(steps))
            far.shutdown(socket.SHUT_WR)
            files.pull(session, "/thing", directory / "in" / "copy")
        assert list(directory.iterdir()) == [directory / "in"]
        assert list((directory / "in").iterdir()) in ([], [directory / "in" / "copy"])
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def holes_pair(session_pair: Pair) -> Pair:
    """A session with an agent that knows holes, which the test plays."""
    session_pair[0].version = wire.HOLES_VERSION
    return session_pair


def _hole(length: int) -> bytes:
    return encode(FrameType.HOLE, wire.HOLE.pack(length))


_FILE_END = encode(FrameType.FILE_END)


@pytest.mark.parametrize(
    "frames",
    [
        _entry(EntryKind.FILE, b"f", 2**63) + _hole(2**63) + _FILE_END,
        _entry(EntryKind.FILE, b"f", 2**60) + _hole(2**60) + _FILE_END,
        _entry(EntryKind.FILE, b"f") + _hole(2**40) + _FILE_END,
        _entry(EntryKind.FILE, b"f", 5) + _hole(6) + _FILE_END,
        _entry(EntryKind.FILE, b"f", 5) + _hole(5) + _hole(2**64 - 1),
        _entry(EntryKind.FILE, b"f", 5) + _hole(5) + encode(FrameType.DATA, b"x"),
        _entry(EntryKind.FILE, b"f", 5) + encode(FrameType.HOLE, b"short"),
        _entry(EntryKind.FILE, b"f", 5) + _DONE,
        _entry(EntryKind.FILE, b"f", 5) + _entry(EntryKind.FILE, b"g"),
        _DIRECTORY + _hole(1),
        _DIRECTORY + _FILE_END,
        _FILE_END,
    ],
)
def test_hostile_holes(holes_pair: Pair, tmp_path: Path, frames: bytes) -> None:
    session, far = holes_pair
    far.sendall(frames)
    with pytest.raises(GuestError):
        files.pull(session, "/thing", tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


def test_a_file_may_end_before_its_size(holes_pair: Pair, tmp_path: Path) -> None:
    session, far = holes_pair
    far.sendall(_entry(EntryKind.FILE, b"f", 4096) + encode(FrameType.DATA, b"x") + _hole(2))
    far.sendall(_FILE_END + _DONE)
    files.pull(session, "/thing", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"x\0\0"


def test_sizes_that_are_lies(session_pair: Pair, tmp_path: Path) -> None:
    session, far = session_pair
    far.sendall(_entry(EntryKind.FILE, b"", 2**64 - 1) + encode(FrameType.DATA, b"x"))
    far.shutdown(socket.SHUT_WR)
    with pytest.raises(GuestError, match="the machine has ended"):
        files.pull(session, "/thing", tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


def test_a_copy_that_is_a_link_is_refused(session_pair: Pair, tmp_path: Path) -> None:
    session, far = session_pair
    entry = Entry(EntryKind.SYMLINK, 0o777, 0, 0, 0, b"", b"/etc")
    far.sendall(encode(FrameType.ENTRY, entry.pack()) + _DONE)
    with pytest.raises(GuestError, match="a symbolic link in place of the copy"):
        files.pull(session, "/srv", tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


def test_a_file_without_end_is_cut_off(holes_pair: Pair, tmp_path: Path) -> None:
    session, far = holes_pair
    sender = threading.Thread(target=_send_without_end, args=(far, 0))
    sender.start()
    with pytest.raises(GuestError, match="more of a file than it announced"):
        files.pull(session, "/proc/kmsg", tmp_path / "copy")
    session.close()
    sender.join()
    assert list(tmp_path.iterdir()) == []


def test_a_copy_leaves_room_on_this_hosts_disk(
    holes_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, far = holes_pair
    full = list(os.statvfs(tmp_path))
    full[4] = 1
    monkeypatch.setattr(os, "fstatvfs", lambda _: os.statvfs_result(full))
    sender = threading.Thread(target=_send_without_end, args=(far, TIB))
    sender.start()
    with pytest.raises(StorageError, match="fills this host's disk"):
        files.pull(session, "/large", tmp_path / "copy")
    session.close()
    sender.join()
    assert list(tmp_path.iterdir()) == []


def _send_without_end(far: socket.socket, announced: int) -> None:
    with contextlib.suppress(OSError):
        far.sendall(_entry(EntryKind.FILE, b"f", announced))
        while True:
            far.sendall(encode(FrameType.DATA, bytes(wire.MAX_PAYLOAD)))
