"""Commands in a guest whose standard streams here are closed, full, or read by nobody."""

from __future__ import annotations

import subprocess

import pytest
from tests.e2e.conftest import Cerne
from tests.waiting import PATIENCE

_FULL = "standard output failed: No space left on device"


def _shell(cerne: Cerne, command: str) -> subprocess.CompletedProcess[bytes]:
    """Run a shell's command line, in which ``cerne`` is ours."""
    return subprocess.run(
        ["bash", "-c", f'cerne() {{ "{cerne.program}" "$@"; }}; {command}'],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=cerne.environment,
        check=False,
        timeout=PATIENCE,
    )


@pytest.fixture
def machine(cerne: Cerne) -> str:
    cerne.ok("run", "-d", "--memory", "128M", "--engine", "qemu", "--name", "r", "tiny")
    return "r"


def test_streams(cerne: Cerne, machine: str) -> None:
    """In one machine, which takes longer to start than all of them."""
    for line, status, said in (
        ("cerne exec -i r -- cat <&-", 0, ""),
        ("cerne exec -i r -- cat <&- >&- 2>&-", 0, ""),
        ("cerne shell r <&-", 0, ""),
        ("cerne exec r -- sh -c 'echo hi; exit 4' >&-", 4, ""),
        ("cerne exec r -- sh -c 'echo hi >&2; exit 4' 2>&-", 4, ""),
        ("cerne exec r -- echo hi >/dev/full", 125, _FULL),
        ("cerne exec r -- sh -c 'echo hi >&2' 2>/dev/full", 125, ""),
        ("echo 'echo hi' | cerne shell r >/dev/full", 125, _FULL),
        ("cerne exec -i r -- cat 0>/dev/null", 125, "standard input failed: Bad file descriptor"),
        ("cerne exec r -- seq 100000 | true; exit ${PIPESTATUS[0]}", 141, ""),
        ("cerne logs r >/dev/full", 11, _FULL),
        ("cerne inspect r | true; exit ${PIPESTATUS[0]}", 141, ""),
        ("cerne console r <&-", 2, "stdin is not a terminal"),
        ("cerne cp r:/etc/hosts /dev/null/x <&- >&- 2>&-", 3, ""),
    ):
        done = _shell(cerne, line)
        told = done.stderr.decode()
        assert done.returncode == status, (line, told)
        assert said in told, line
        assert "Traceback" not in told, (line, told)
        assert said or not told, (line, told)


def test_a_machine_of_a_run_that_cannot_print_is_removed(cerne: Cerne) -> None:
    run = "cerne run --rm --engine qemu --memory 128M"
    done = _shell(cerne, f"{run} tiny -- echo hi >/dev/full")
    assert (done.returncode, _FULL in done.stderr.decode()) == (125, True)
    done = _shell(cerne, f"{run} -i tiny -- cat <&-")
    assert (done.returncode, done.stderr) == (0, b"")
    assert cerne.names() == []
