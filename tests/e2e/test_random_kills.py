"""Commands that are killed at random moments, a thousand on each engine, and twenty at once."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.e2e.conftest import Cerne, Engine, built_home
from tests.e2e.trials import DEBIAN, TINY, World

from cerne.manager.warm.template import VARIABLE as TEMPLATES

_ROUNDS = 40
_TRIALS = 25
_CROWD = 20


@pytest.fixture(scope="module")
def debian() -> Iterator[Cerne]:
    """The command line in a home with Debian's image, where templates are used."""
    with built_home() as cerne:
        del cerne.environment[TEMPLATES]
        cerne.ok("image", "build", DEBIAN.image, timeout=600)
        yield cerne


@pytest.fixture(scope="module")
def durations() -> dict[str, dict[str, float]]:
    """How long operations take on each engine."""
    return {}


@pytest.fixture
def world(
    engine: Engine,
    debian: Cerne,
    tmp_path: Path,
    durations: dict[str, dict[str, float]],
    request: pytest.FixtureRequest,
) -> Iterator[World]:
    """That home, with a template for the engine; what a round leaves is not the next one's."""
    request.getfixturevalue("kvm_device" if engine.name == "native" else "qemu")
    warm = ("image", "warm", "--engine", engine.name, *DEBIAN.options, "--timeout", "500s")
    debian.ok(*warm, DEBIAN.image, timeout=600)
    taken = durations.setdefault(engine.name, {})
    world = World(debian, engine, random.Random(), tmp_path, taken)
    yield world
    _empty(world)


@pytest.fixture
def crowded(engine: Engine, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    """A home of machines that may be stopped and started: Debians take minutes if emulated."""
    if not engine.emulated:
        yield request.getfixturevalue("world")
        return
    native: Cerne = request.getfixturevalue("_native")
    world = World(native, engine, random.Random(), tmp_path, {}, TINY)
    yield world
    _empty(world)


def _empty(world: World) -> None:
    for name in world.cerne.names():
        world.cerne("rm", "--force", name)
    for name in world.snapshots():
        world.cerne("snapshot", "rm", name)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(_ROUNDS))
def test_commands_are_killed_at_random_moments(world: World, seed: int) -> None:
    world.random.seed(seed)
    try:
        for _ in range(_TRIALS):
            world.trial()
        world.finish()
    finally:
        print(*world.trials, sep="\n")
        print(f"{sum(trial.killed for trial in world.trials)} of {len(world.trials)} killed")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_twenty_commands_at_once(crowded: World) -> None:
    world, cerne, name = crowded, crowded.cerne, "one"
    cerne.ok("run", "-d", "--name", name, *world.options, world.kind.image)
    commands = [
        ("exec", name, "--", "true"),
        ("pause", name),
        ("resume", name),
        ("stop", name),
        ("start", name),
        ("suspend", name),
        ("wake", name),
        ("snapshot", "create", name),
        ("fork", name),
        ("set", name, "--balloon", world.kind.memory),
        ("inspect", name),
        ("nic", "ls", name),
        ("stats",),
        ("ls",),
    ]
    for round_ in range(4):
        world.random.seed(round_)
        crowd = world.random.choices(commands, k=_CROWD)
        with ThreadPoolExecutor(_CROWD) as workers:
            done = list(workers.map(lambda words: cerne(*words), crowd))
        for words, each in zip(crowd, done, strict=True):
            said = each.stderr.decode()
            assert "Traceback" not in said, (words, said)
            assert each.returncode == 0 or said.startswith("cerne: "), (words, each.returncode)
        world.check()
        if name in (state := world.states()) and state[name] not in ("running", "paused"):
            cerne.ok("start", "--timeout", "500s", name, timeout=600)
        if world.states()[name] == "paused":
            cerne.ok("resume", name)
        world.check()
        for other in world.states():
            if other != name:
                cerne.ok("rm", "--force", other)
        for snapshot in world.snapshots():
            cerne.ok("snapshot", "rm", snapshot)
    world.finish()
