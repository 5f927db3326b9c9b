"""A compromised VMM: what stops each of its attacks, and what still holds without one wall."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.vmm.attacks import ATTACKS

import cerne
from cerne.engine.detached import START
from cerne.host import user_ids
from cerne.vmm.jail.bpf import ALLOW, program
from cerne.vmm.jail.calls import PROGRAM_CALLS
from cerne.vmm.jail.program import Room
from cerne.vmm.jail.walls import Wall

_DOCUMENT = Path(__file__).parents[2] / "docs" / "isolation.md"
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
    assert _documented().keys() == ATTACKS.keys()
    assert f"| attack | {' | '.join(Wall)} |" in _DOCUMENT.read_text()


# QEMU's own sandbox stops the first; what it takes is bounded by the machine's control group.
_ALLOWED_TO_PROGRAMS = {
    "run a program",
    "fork without end",
    "take memory without end",
    "open descriptors without end",
    "map new code",
}


@pytest.mark.parametrize("network", [True, False])
def test_a_program_in_its_room_attacks_nothing(
    root: None, tmp_path_factory: pytest.TempPathFactory, network: bool
) -> None:
    directory = tmp_path_factory.mktemp("attacks")
    script = Path(__file__).with_name("attacks.py")
    with contextlib.ExitStack() as leaving:
        targets = {**_targets(directory, leaving), "here": "yes"}
        room = Room(
            own_root=True,
            user=int(targets["user"]),
            reads=[str(script), sys.base_prefix],
            writes=[targets["shared"]],
            network=network,
            filter=program(PROGRAM_CALLS, ALLOW),
        )
        assert Room.from_words(room.words()[:-1]).words() == room.words()
        python = str(Path(sys.executable).resolve())
        argv = [python, "-I", "-S", str(script), json.dumps(targets)]
        command = [*START, "program", *room.words(), *argv]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert not run.stderr
    outcomes = json.loads(run.stdout)
    allowed = {attack for attack, outcome in outcomes.items() if not outcome}
    # It may do so in a directory of its own, which no user of the host may enter.
    assert allowed - _ALLOWED_TO_PROGRAMS - {"write a setuid file"} == (
        {"connect to the host's network"} if network else set()
    )
