"""What only a real guest can show of its agent: its clock, its disks, its ports, its end."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.e2e.conftest import Cerne, Engine
from tests.waiting import PATIENCE

from cerne.errors import GuestError
from cerne.guest import ExitStatus, GuestAgent


@pytest.fixture
def agent(cerne: Cerne, engine: Engine) -> GuestAgent:
    """The agent of a running machine."""
    cerne.ok("run", "--detach", "--name", "guest", *engine.options, "tiny")
    (socket,) = (cerne.home / "run" / "m").glob("*/agent0.sock")
    return GuestAgent([socket.with_name(f"agent{number}.sock") for number in range(8)])


def _words(agent: GuestAgent, script: str) -> str:
    return agent.run(["sh", "-c", script], timeout=PATIENCE).stdout.decode().strip()


def test_its_clock_is_set(agent: GuestAgent) -> None:
    assert _words(agent, "date -s 2001-02-03 >/dev/null; date +%Y") == "2001"
    agent.set_time()
    assert abs(int(_words(agent, "date +%s")) - time.time()) < 60


def test_it_takes_entropy(agent: GuestAgent) -> None:
    agent.add_entropy(os.urandom(512))


def test_it_says_what_it_is(agent: GuestAgent) -> None:
    info = agent.info()
    assert info.hostname == "guest"
    assert info.kernel == _words(agent, "uname -r")
    assert 0 < info.uptime < 3600


@pytest.mark.slow_if_emulated
def test_sessions_follow_one_another_on_every_port(agent: GuestAgent) -> None:
    failed: list[str] = []

    def run_many() -> None:
        for number in range(10):
            said = agent.run(["echo", str(number)], timeout=PATIENCE).stdout.decode()
            if said != f"{number}\n":
                failed.append(said)

    threads = [threading.Thread(target=run_many) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


@pytest.mark.slow_if_emulated
def test_a_session_that_dies_says_so_and_no_other_notices(agent: GuestAgent) -> None:
    with agent.popen(["cat"]) as other:
        with agent.popen(["cat"]) as doomed:
            session = _words(agent, f"awk '{{print $4}}' /proc/{doomed.pid}/stat")
            _words(agent, f"kill -9 {session}")
            with pytest.raises(GuestError, match="restarted"):
                doomed.wait(PATIENCE)
        other.write(b"still here")
        output = other.read(PATIENCE)
        assert output is not None
        assert output.data == b"still here"
        other.close_stdin()
        assert other.wait(PATIENCE) == ExitStatus(0)


@pytest.mark.slow_if_emulated
def test_a_client_that_left_takes_its_command_along(
    agent: GuestAgent, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    with agent.popen(["sleep", "1000"]) as process:
        pid = process.pid
    eventually(lambda: _words(agent, f"[ -d /proc/{pid} ] && echo there") != "there")


@pytest.mark.slow_if_emulated
def test_a_full_disk(agent: GuestAgent, tmp_path: Path) -> None:
    _words(agent, "mkdir /small && mount -t tmpfs -o size=1m tmpfs /small")
    (tmp_path / "large").write_bytes(os.urandom(4_000_000))
    with pytest.raises(GuestError, match="cannot write /small/large: No space left on device"):
        agent.push(tmp_path / "large", "/small")
    assert _words(agent, "ls -A /small") == ""
