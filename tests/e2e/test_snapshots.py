"""Machines that are kept, forked, suspended and carried, each with what it had in its memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.conftest import Cerne, Engine


@pytest.fixture
def kept(cerne: Cerne, engine: Engine) -> Iterator[Cerne]:
    """The command line with a machine ``a`` that runs; no snapshot outlives a test."""
    cerne.ok("run", "-d", "--name", "a", *engine.options, "tiny")
    yield cerne
    for snapshot in json.loads(cerne.ok("snapshot", "ls", "--json")):
        cerne.ok("snapshot", "rm", snapshot["name"])


def _write(cerne: Cerne, name: str, word: str) -> None:
    cerne.ok("exec", name, "--", "sh", "-c", f"echo {word} > /tmp/word")


def _word(cerne: Cerne, name: str) -> str:
    return cerne.ok("exec", name, "cat", "/tmp/word").strip()


_WHO = (
    "read word </tmp/word; read name </proc/sys/kernel/hostname; "
    "read address </sys/class/net/eth0/address; read said </proc/sys/kernel/random/uuid; "
    "echo $word $name $address $said"
)
"""Starts no process: that takes long where a guest's kernel is emulated."""


def _who(cerne: Cerne, name: str) -> tuple[str, ...]:
    """The word in it, its name, its address, and what its random number generator says."""
    return tuple(cerne.ok("exec", name, "--", "sh", "-c", _WHO).split())


@pytest.mark.slow_if_emulated
def test_going_back(kept: Cerne) -> None:
    _write(kept, "a", "before")
    assert kept.ok("snapshot", "create", "a", "s") == "s\n"
    _write(kept, "a", "after")
    assert kept.ok("snapshot", "restore", "s") == "a\n"
    first = _who(kept, "a")
    assert kept.ok("snapshot", "restore", "s", "--as", "b") == "b\n"
    second = _who(kept, "b")
    assert (first[0], second[0]) == ("before", "before")
    assert not set(first[1:]) & set(second[1:])
    assert "snapshot rm s" in kept.refused("snapshot", "create", "a", "s", status=4)
    assert "no snapshot named t" in kept.refused("snapshot", "restore", "t", status=3)
    assert "--as NAME" in kept.refused("snapshot", "restore", "s", "-p", "8089:80", status=2)


def test_forks_go_on_from_their_parent(kept: Cerne) -> None:
    _write(kept, "a", "shared")
    assert kept.ok("fork", "a", "--count", "2", "--name", "left") == "left\na-1\n"
    assert kept.ok("fork", "left") == "left-1\n"
    _write(kept, "a", "parent")
    _write(kept, "left", "child")
    found = [_who(kept, name) for name in ("a", "left", "a-1", "left-1")]
    words, *others = zip(*found, strict=True)
    assert words == ("parent", "child", "shared", "shared")
    assert others[0] == ("a", "left", "a-1", "left-1")
    assert all(len(set(values)) == 4 for values in others)
    kept.ok("kill", "left")
    kept.ok("rm", "--force", "a")
    for name in ("a-1", "left-1"):
        assert _word(kept, name) == "shared"


@pytest.mark.slow_if_emulated
def test_suspending(kept: Cerne) -> None:
    _write(kept, "a", "kept")
    kept.ok("suspend", "a")
    assert kept.machine("a")["state"] == "suspended"
    assert kept.processes() == []
    assert "cerne wake a" in kept.refused("exec", "a", "true", status=125)
    assert "lose its memory" in kept.refused("stop", "a", status=4)
    kept.ok("wake", "a")
    assert _word(kept, "a") == "kept"
    kept.ok("suspend", "a")
    kept.ok("start", "a")
    assert _word(kept, "a") == "kept"


def test_a_snapshot_is_carried_in_one_file(kept: Cerne, tmp_path: Path) -> None:
    file = tmp_path / "s.cerne"
    _write(kept, "a", "carried")
    kept.ok("snapshot", "create", "a", "s")
    kept.ok("snapshot", "export", "s", str(file))
    kept.ok("rm", "--force", "a")
    kept.ok("snapshot", "rm", "s")
    assert kept.ok("snapshot", "import", "--name", "t", str(file)) == "t\n"
    kept.ok("snapshot", "restore", "t", "--as", "b")
    assert _word(kept, "b") == "carried"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert "was altered" in kept.refused("snapshot", "import", str(file), status=10)
    file.write_bytes(content[: len(content) // 2])
    assert "is not usable" in kept.refused("snapshot", "import", "--name", "u", str(file))
