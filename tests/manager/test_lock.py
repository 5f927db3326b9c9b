"""One operation at a time on a machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cerne.errors import BusyError
from cerne.manager.lock import held, is_held


def test_a_second_operation_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with held(path, "snapshot", "web"):
        assert is_held(path)
        with (
            pytest.raises(BusyError, match="web is busy: snapshot by process"),
            held(path, "start", "web", patience=0.05),
        ):
            pass
    assert not is_held(path)
    with held(path, "start", "web", patience=0):
        pass


def test_a_lock_that_was_never_taken_is_free(tmp_path: Path) -> None:
    assert not is_held(tmp_path / "none")


def test_the_kernel_frees_the_lock_of_a_killed_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    script = (
        "import os, signal, sys, pathlib\n"
        "from cerne.manager.lock import held\n"
        "with held(pathlib.Path(sys.argv[1]), 'start', 'web'):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert killed.returncode == -9
    with held(path, "start", "web", patience=0):
        pass
