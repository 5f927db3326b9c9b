"""Templates, end to end: what starts from one, what it shares with others, what is refused."""

from __future__ import annotations

import os
import shutil
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.e2e.conftest import Cerne, Engine
from tests.processes import commands
from tests.waiting import PATIENCE

_WHO = (
    "sh",
    "-c",
    "cd /proc/sys/kernel; cat hostname /sys/class/net/eth0/address random/uuid; date +%s",
)


@pytest.fixture
def warm(cerne: Cerne, engine: Engine, templates: None) -> Cerne:
    """The command line of somebody who has a template of the tiny image, and leaves it alone."""
    cerne.ok("image", "warm", *engine.options, "tiny")
    return cerne


@pytest.fixture
def used(
    cerne: Cerne, templates: None, eventually: Callable[[Callable[[], bool]], None]
) -> Iterator[Cerne]:
    """The command line of somebody who has templates, and none yet."""
    kept, others = cerne.home / "templates", cerne.home / "other-templates"
    kept.rename(others)
    kept.mkdir()
    yield cerne
    # What was begun in the background.
    eventually(lambda: not _is_being_warmed(cerne))
    shutil.rmtree(kept)
    others.rename(kept)


def _is_being_warmed(cerne: Cerne) -> bool:
    """Whether a command of this home makes a template."""
    home = os.fsencode(cerne.home)
    return any(b"warm" in words and home in words for words in commands().values())


def _templates(cerne: Cerne) -> list[Path]:
    return [path for path in (cerne.home / "templates").iterdir() if path.is_dir()]


def test_a_machine_goes_on_from_it_as_one_of_its_own(warm: Cerne, engine: Engine) -> None:
    said = []
    for name in ("one", "two"):
        warm.ok("run", "-d", "--name", name, *engine.options, "tiny")
        before = time.time()
        said.append(warm.ok("exec", name, "--", *_WHO).splitlines())
        assert before - 5 < int(said[-1][3]) < time.time() + 5
    assert [lines[0] for lines in said] == ["one", "two"]
    for shared in (1, 2):
        assert said[0][shared] != said[1][shared]


@pytest.mark.slow_if_emulated
def test_one_that_has_run_boots(warm: Cerne, engine: Engine) -> None:
    warm.ok("run", "-d", "--name", "one", *engine.options, "tiny")
    warm.ok("stop", "one")
    warm.ok("start", "one")
    assert warm.ok("exec", "one", "hostname") == "one\n"


def test_what_is_published_is_the_machines_own(warm: Cerne, engine: Engine, port: int) -> None:
    warm.ok("run", "-d", "--name", "web", "--publish", f"{port}:80", *engine.options, "tiny")
    warm.ok("exec", "web", "--", "sh", "-c", "echo hi >/tmp/f; httpd -p 80 -h /tmp")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/f", timeout=PATIENCE) as answer:
        assert answer.read() == b"hi\n"


@pytest.mark.slow_if_emulated
def test_other_machines_boot(used: Cerne, engine: Engine) -> None:
    assert used.ok("image", "warm", *engine.options, "tiny") == "tiny is warm\n"
    assert used.ok("image", "warm", *engine.options, "tiny") == "tiny is warm already\n"
    for name, other in (("cold", ("--cold",)), ("large", ("--memory", "160M"))):
        used.ok("run", "-d", "--name", name, *engine.options, *other, "tiny")
        assert used.ok("exec", name, "hostname") == f"{name}\n"


@pytest.mark.slow_if_emulated
def test_a_machine_with_mounts_boots(
    warm: Cerne, engine: Engine, mounting: None, tmp_path: Path
) -> None:
    mount = ("--mount", f"{tmp_path}:/x")
    warm.ok("run", "-d", "--name", "mounts", *mount, *engine.options, "tiny")
    assert warm.ok("exec", "mounts", "grep", "-c", " /x ", "/proc/mounts") == "1\n"


@pytest.mark.slow_if_emulated
@pytest.mark.parametrize(
    "name",
    [
        "memory",
        pytest.param("state", marks=pytest.mark.slow),
        pytest.param("manifest.json", marks=pytest.mark.slow),
    ],
)
def test_one_that_was_altered_is_refused_and_the_machine_boots(
    used: Cerne, engine: Engine, name: str
) -> None:
    used.ok("image", "warm", *engine.options, "tiny")
    (template,) = _templates(used)
    content = bytearray((template / name).read_bytes())
    content[len(content) // 2] ^= 1
    (template / name).write_bytes(content)
    done = used("run", "--rm", *engine.options, "tiny", "--", "echo", "it boots")
    assert (done.returncode, done.stdout) == (0, b"it boots\n")
    assert b"is not usable" in done.stderr
    assert not template.exists()


@pytest.mark.slow_if_emulated
def test_an_image_gets_warm_by_being_used(
    used: Cerne, engine: Engine, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    used.ok("run", "--rm", *engine.options, "tiny", "--", "true")
    eventually(lambda: any((path / "template.json").exists() for path in _templates(used)))


@pytest.mark.slow_if_emulated
def test_nothing_is_left_of_one_whose_maker_is_killed(
    used: Cerne, engine: Engine, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    making = used.begin("image", "warm", *engine.options, "tiny")
    eventually(lambda: bool(used.processes()))
    os.killpg(making.pid, signal.SIGKILL)
    making.communicate()
    assert used.ok("image", "warm", *engine.options, "tiny") == "tiny is warm\n"
    assert used.leftovers() == []
    assert len(_templates(used)) == 1


def test_machines_without_an_agent_boot_each_time(cerne: Cerne, tmp_path: Path) -> None:
    disk = tmp_path / "empty.raw"
    disk.write_bytes(bytes(1 << 20))
    cerne.ok("image", "import", str(disk), "--name", "empty")
    assert "boot each time" in cerne.refused("image", "warm", "empty")
    cerne.ok("image", "rm", "empty")
