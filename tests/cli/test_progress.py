"""The progress of snapshots: on a terminal, and nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

from cerne.manager import Manager
from cerne.spec.machine import machine_spec


@pytest.fixture
def defined(home: Path, tmp_path: Path) -> None:
    disk = tmp_path / "blank.raw"
    disk.write_bytes(bytes(1 << 20))
    with Manager() as manager:
        manager.import_image(str(disk), "blank")
        manager.create(machine_spec(name="web", image="blank", memory="64M"))


_TYPED = ["-m", "cerne", "snapshot", "create", "web", "kept"]


@pytest.mark.usefixtures("defined")
def test_a_snapshot_shows_its_progress_on_a_terminal() -> None:
    typed = pexpect.spawn(sys.executable, _TYPED, env={**os.environ, "TERM": "xterm"}, timeout=60)
    typed.expect("keeping web")
    typed.expect("kept")
    typed.expect(pexpect.EOF)
    typed.close()
    assert typed.exitstatus == 0


@pytest.mark.usefixtures("defined")
def test_a_snapshot_shows_no_progress_in_a_pipe() -> None:
    ran = subprocess.run([sys.executable, *_TYPED], capture_output=True, check=True)
    assert (ran.stdout, ran.stderr) == (b"kept\n", b"")
