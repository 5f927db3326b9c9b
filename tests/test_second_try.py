"""`make test` tries a test twice: both tries have a time limit and what the module has made."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_TESTS = """
import time
from pathlib import Path
import pytest

@pytest.fixture(scope="module")
def made():
    with Path("made").open("a") as file:
        file.write("x")
    yield "made"
    with Path("made").open("a") as file:
        file.write("y")

def test_before(made):
    pass

def test_fails_once(made, tmp_path_factory):
    tries = Path("tries")
    tries.write_text((tries.read_text() if tries.exists() else "") + "x")
    assert tries.read_text() == "xx"

def test_hangs(made):
    time.sleep(60)

def test_after(made):
    assert Path("made").read_text() == "x"
"""


def test_a_second_try_has_the_limit_of_the_first(tmp_path: Path) -> None:
    (tmp_path / "test_tries.py").write_text(_TESTS)
    options = ["--reruns", "1", "--rerun-show-tracebacks", "--timeout", "2", "-n", "2"]
    root = str(Path(__file__).parent.parent)
    plugins = ["-p", "tests.conftest", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-o", f"pythonpath={root}", *plugins, *options, "."],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": root},
        check=False,
    )
    assert "1 failed, 3 passed, 2 rerun" in done.stdout, done.stdout + done.stderr
    assert "RERUN test_tries.py::test_fails_once" in done.stdout
    assert (tmp_path / "made").read_text() == "xy"
