"""A compromised VMM: what stops each of its attacks, and what still holds without one wall."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from copy import copy
from pathlib import Path

import pytest
from tests.vmm.attacks import ATTACKS

import cerne
from cerne.engine.detached import START
from cerne.engine.native.backends import CHANGES
from cerne.host import user_ids
from cerne.vmm.jail.bpf import ALLOW, Rule, program
from cerne.vmm.jail.calls import (
    CONFINING_PROGRAM_CALLS,
    DIRECTORY_PROGRAM_CALLS,
    DISK_PROGRAM_CALLS,
    PROGRAM_CALLS,
)
from cerne.vmm.jail.program import FILE_CAPABILITIES, Room
from cerne.vmm.jail.system import MOST_DESCRIPTORS
from cerne.vmm.jail.walls import Wall

_DOCUMENT = Path(__file__).parents[2] / "docs" / "isolation.md"
_SCRIPT = Path(__file__).with_name("attacks.py")
_PYTHON = str(Path(sys.executable).resolve())
_FORKS = "fork without end"

Outcomes = dict[str, dict[str, str]]
"""For each choice of walls, what stopped each attack."""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcomes]:
    """Of all attacks on another machine and on the host."""
    if os.geteuid() != 0:
        pytest.skip("it needs root, which has user ids to give")
    directory = tmp_path_factory.mktemp("attacks")
    with contextlib.ExitStack() as leaving:
        targets = _targets(directory, leaving)
        attack = [sys.executable, "-I", "-S", str(Path(__file__).with_name("attacks.py"))]
        run = subprocess.run(
            [*attack, json.dumps(targets)], capture_output=True, text=True, check=False
        )
        assert not run.stderr
        yield json.loads(run.stdout)


def _targets(directory: Path, leaving: contextlib.ExitStack) -> dict[str, str]:
    """Another machine's process and files, as its commands make them, and the host's."""
    first, second = user_ids.take(), user_ids.take()
    if first is None or second is None:
        pytest.skip("this user namespace has no user ids for machines")
    for lease in (first, second):
        leaving.callback(os.close, lease.descriptor)
    # Every user may reach the directory, so that the other machine's own modes count.
    for above in [directory, *directory.parents]:
        if above.stat().st_uid == os.geteuid() and above != Path("/"):
            above.chmod(above.stat().st_mode | 0o111)
    other, shared = directory / "other", directory / "shared"
    other.mkdir(mode=0o700)
    shared.mkdir()
    shared.chmod(0o1777)
    for name in ("disk", "log"):
        (other / name).touch(mode=0o600)
    links = [leaving.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2)]
    links[0].bind(str(other / "qmp.sock"))
    links[1].bind(f"\0cerne-{directory}")
    for link in links:
        link.listen(100)
    port = leaving.enter_context(socket.create_server(("127.0.0.1", 0), backlog=100))
    victim = leaving.enter_context(
        subprocess.Popen(
            ["cat"],
            stdin=subprocess.PIPE,
            user=second.user,
            group=second.user,
            extra_groups=[],
        )
    )
    leaving.callback(victim.kill)
    return {
        "source": str(Path(cerne.__file__).parents[1]),
        "user": str(first.user),
        "victim": str(victim.pid),
        "tester": str(os.getpid()),
        "disk": str(other / "disk"),
        "log": str(other / "log"),
        "shared": str(shared),
        "socket": str(other / "qmp.sock"),
        "abstract": f"cerne-{directory}",
        "port": str(port.getsockname()[1]),
    }


def _documented() -> dict[str, set[Wall]]:
    """The walls that the page names for each attack."""
    rows = re.findall(r"^\| ([^|]+?) \|(.*)\|$", _DOCUMENT.read_text(), re.MULTILINE)
    return {
        attack: {wall for wall, cell in zip(Wall, cells.split("|"), strict=False) if cell.strip()}
        for attack, cells in rows
        if attack in ATTACKS
    }


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_fails_at_each_wall_that_the_page_names(outcomes: Outcomes, attack: str) -> None:
    if outcomes["none"][attack]:
        pytest.skip(f"this host stops it without any wall: {outcomes['none'][attack]}")
    assert outcomes["all"][attack]
    for wall in _documented()[attack]:
        # The limit of threads does not hold for root.
        choice = "all" if attack == _FORKS else f"only {wall}"
        assert outcomes[choice][attack], wall


@pytest.mark.parametrize("wall", Wall)
def test_without_one_wall_others_still_stop_most_attacks(outcomes: Outcomes, wall: Wall) -> None:
    valid = {attack for attack in ATTACKS if not outcomes["none"][attack]}
    holes = {attack for attack in valid if not outcomes[f"without {wall}"][attack]}
    assert len(holes) < len(valid) / 2
    lost = {wall}
    if wall is Wall.NO_NEW_PRIVILEGES:
        # The kernel puts up neither for a process that can still gain privileges.
        lost |= {Wall.LANDLOCK, Wall.SECCOMP}
    alone = {attack for attack, walls in _documented().items() if walls <= lost}
    assert holes <= (alone | {_FORKS} if wall is Wall.USER else alone)


def test_the_page_has_each_attack_and_each_wall() -> None:
    documented = _documented()
    assert documented.keys() == ATTACKS.keys()
    # With one wall taken away another one holds.
    held = [attack for attack, walls in documented.items() if len(walls) > 1]
    assert 2 * len(held) > len(ATTACKS)
    assert f"Of these {len(ATTACKS)} attacks, {len(held)} fail at two" in _DOCUMENT.read_text()
    assert f"| attack | {' | '.join(Wall)} |" in _DOCUMENT.read_text()


_ALL_CALLS = program((), ALLOW)


def _rooms(targets: dict[str, str]) -> dict[str, Room]:
    """The rooms of programs that are not ours, as their machines have them."""
    shared = targets["shared"]
    libraries = {"programs": [_PYTHON], "descriptors": MOST_DESCRIPTORS, "memory": 1 << 30}
    own = {"user": int(targets["user"]), "threads": 64}
    return {
        "QEMU": _room(PROGRAM_CALLS, writes=[shared], **own),
        "storage daemon": _room(DISK_PROGRAM_CALLS, writes=[shared], **own, **libraries),
        "passt": _room(CONFINING_PROGRAM_CALLS, network=True, **own, **libraries),
        "virtiofsd": _room(
            DIRECTORY_PROGRAM_CALLS,
            writes=[shared],
            settings=True,
            capabilities=[*FILE_CAPABILITIES, *CHANGES],
            **libraries,
        ),
    }


def _room(calls: Sequence[Rule], **others: object) -> Room:
    return Room(own_root=True, filter=program(calls, ALLOW), **others)  # type: ignore[arg-type]


def _attacked(room: Room, targets: dict[str, str]) -> dict[str, str]:
    """What stopped each attack of a program in this room."""
    room.reads = [str(_SCRIPT), sys.base_prefix]
    assert Room.from_words(room.words()[:-1]).words() == room.words()
    argv = [_PYTHON, "-I", "-S", str(_SCRIPT), json.dumps({**targets, "here": "yes"})]
    command = [*START, "program", *room.words(), *argv]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not run.stderr
    outcomes: dict[str, str] = json.loads(run.stdout)
    return outcomes


def _stopped_by(room: Room, targets: dict[str, str]) -> dict[str, set[str]]:
    """The parts of the walls of which each stops an attack by itself."""
    choices = {"room": copy(room), "filter": copy(room), "rest": copy(room)}
    for part in ("filter", "rest"):
        choices[part].own_root, choices[part].user = False, None
    for part in ("room", "rest"):
        choices[part].filter = _ALL_CALLS
    outcomes = {part: _attacked(choice, targets) for part, choice in choices.items()}
    outcomes["all"] = _attacked(room, targets)
    stops: dict[str, set[str]] = {}
    for attack in ATTACKS:
        if outcomes["rest"][attack]:
            stops[attack] = {"rest"}
        else:
            stops[attack] = {part for part in ("room", "filter") if outcomes[part][attack]}
        assert bool(outcomes["all"][attack]) == bool(stops[attack]), attack
    return stops


def _documented_rooms() -> dict[str, dict[str, set[str]]]:
    """The parts of the walls that the page names, for each program and attack."""
    text = _DOCUMENT.read_text()
    head = re.search(r"^\| attack of \|(.*)\|\n\|.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert head is not None
    programs = [cell.strip() for cell in head[1].split("|")]
    found: dict[str, dict[str, set[str]]] = {name: {} for name in programs}
    for line in head[2].splitlines():
        attack, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        for name, cell in zip(programs, cells, strict=True):
            found[name][attack] = set(cell.replace(",", " ").split()) - {"no"}
    return found


@pytest.mark.parametrize("name", ["QEMU", "storage daemon", "passt", "virtiofsd"])
def test_the_walls_of_other_programs_stop_what_the_page_says(
    root: None, tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    directory = tmp_path_factory.mktemp("attacks")
    with contextlib.ExitStack() as leaving:
        targets = _targets(directory, leaving)
        stops = _stopped_by(_rooms(targets)[name], targets)
    assert _documented_rooms()[name] == stops


def test_the_room_of_another_user_than_root_has_none_of_that_users_files(root: None) -> None:
    python = "/usr/bin/python3"
    nobody = {"user": 65534, "group": 65534, "extra_groups": []}
    with tempfile.TemporaryDirectory() as name:
        own = Path(name, "own")
        own.touch()
        for path in (Path(name), own):
            os.chown(path, 65534, 65534)
        room = _room(PROGRAM_CALLS, reads=[], programs=["/bin/cat"])
        command = [python, *START[1:], "program", *room.words(), "/bin/cat", str(own)]
        run = subprocess.run([python, START[-1]], capture_output=True, check=False, **nobody)  # type: ignore[call-overload]
        if b"IndexError" not in run.stderr:
            pytest.skip(f"no other user runs {python} with {START[-1]}")
        run = subprocess.run(command, capture_output=True, text=True, check=False, **nobody)  # type: ignore[call-overload]
        if "lacks a root" in run.stderr:
            pytest.skip("this host lets no other user than root make user namespaces")
        assert run.stderr == f"/bin/cat: {own}: No such file or directory\n"
        room.reads = [str(own)]
        command = [python, *START[1:], "program", *room.words(), "/bin/cat", str(own)]
        run = subprocess.run(command, capture_output=True, text=True, check=False, **nobody)  # type: ignore[call-overload]
        assert (run.returncode, run.stderr) == (0, "")


def test_where_no_owners_are_mapped_a_program_keeps_roots_id_and_its_own_root(
    root: None, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    own.write_text("words")
    own.chmod(0o600)
    # No mount of its file system has other owners.
    unmapped = "/dev/pts/ptmx"
    if not Path(unmapped).exists():
        pytest.skip(f"there is no {unmapped}")
    with contextlib.ExitStack() as leaving:
        targets = _targets(tmp_path, leaving)
        room = _room(
            PROGRAM_CALLS,
            user=int(targets["user"]),
            reads=[str(own)],
            writes=[unmapped],
            programs=["/bin/cat"],
        )
        command = [*START, "program", *room.words(), "/bin/cat", str(own)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (run.stdout, run.stderr) == (
            "words",
            "this host lacks user: Invalid argument\n",
        )
        assert run.stderr == "this host lacks user: Invalid argument\n"
        command = [*START, "program", *room.words(), "/bin/cat", "/etc/shadow"]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "No such file" in run.stderr
