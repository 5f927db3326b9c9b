"""Pools, end to end: machines that are ready, each given to one."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.e2e.conftest import Cerne, Engine


@pytest.fixture
def pool(cerne: Cerne, engine: Engine, templates: None) -> Iterator[Cerne]:
    """The command line, and a pool ``p`` of two machines, filled."""
    create = ("pool", "create", "p", "--image", "tiny", "--ready", "2", *engine.options)
    assert cerne.ok(*create) == "p\n"
    yield cerne
    cerne.ok("pool", "rm", "p")


def _ready(cerne: Cerne) -> int:
    (pool,) = json.loads(cerne.ok("pool", "ls", "--json"))
    assert pool["wanted"] == 2
    return int(pool["ready"])


@pytest.mark.slow_if_emulated
def test_what_is_taken_is_replaced(
    pool: Cerne, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    assert _ready(pool) == 2
    taken = pool.ok("pool", "take", "p").strip()
    assert pool.ok("exec", taken, "hostname").strip() == taken
    assert pool.ok("pool", "take", "p", "--name", "mine") == "mine\n"
    assert pool.ok("exec", "mine", "hostname") == "mine\n"
    eventually(lambda: _ready(pool) == 2)
    assert len(pool.names()) == 4


@pytest.mark.slow_if_emulated
def test_each_machine_is_given_to_one(
    pool: Cerne, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    with ThreadPoolExecutor() as workers:
        taking = [workers.submit(pool.ok, "pool", "take", "p") for _ in range(4)]
        taken = [each.result() for each in taking]
    assert len(set(taken)) == 4
    eventually(lambda: _ready(pool) == 2)


@pytest.mark.slow_if_emulated
def test_one_that_has_died_is_not_handed_out(
    pool: Cerne, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    for name in pool.names():
        os.kill(int(str(pool.machine(name)["pid"])), signal.SIGKILL)
    taken = pool.ok("pool", "take", "p").strip()
    assert pool.ok("exec", taken, "hostname").strip() == taken
    eventually(lambda: _ready(pool) == 2)


def test_what_cannot_be_is_refused(cerne: Cerne) -> None:
    assert "no pool named x" in cerne.refused("pool", "take", "x")
    assert "1000" in cerne.refused("pool", "create", "x", "--ready", "5000")
    assert "CPUs" in cerne.refused("pool", "create", "x", "--cpus", "99999")
    assert cerne.ok("pool", "ls", "--json") == "[]\n"


def test_a_pool_that_cannot_be_filled_is_not_made(cerne: Cerne) -> None:
    cerne.refused("pool", "create", "x", "--image", "no-such-image")
    assert cerne.ok("pool", "ls", "--json") == "[]\n"
    assert cerne.leftovers() == []
