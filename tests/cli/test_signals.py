"""Signals that end a command, before it has begun anything and after."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

_LOADING = """
import os, signal, sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "cerne.cli.app":
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupting())
from cerne.cli import main
main()
"""

_WORKING = """
import os, signal, sys
from cerne.cli.failure import reported
from cerne.cli.signals import end_at_once, end_in_order
signal.signal(signal.SIGINT, signal.default_int_handler)
end_at_once()
end_in_order()
with reported():
    try:
        os.kill(os.getpid(), int(sys.argv[1]))
    finally:
        for number in sys.argv[2:]:
            os.kill(os.getpid(), int(number))
        print("undone")
"""


def _run(program: str, *arguments: int) -> tuple[int, bytes, bytes]:
    words = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, check=False, env=os.environ)
    return done.returncode, done.stdout, done.stderr


def test_ctrl_c_while_the_program_loads_ends_it_without_a_word() -> None:
    assert _run(_LOADING) == (130, b"", b"")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_was_begun_is_undone_and_the_status_tells_the_signal(number: signal.Signals) -> None:
    assert _run(_WORKING, number) == (128 + number, b"undone\n", b"")


def test_a_second_signal_does_not_break_off_the_undoing() -> None:
    said = _run(_WORKING, signal.SIGHUP, signal.SIGHUP, signal.SIGTERM)
    assert said == (129, b"undone\n", b"")
