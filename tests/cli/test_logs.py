"""``cerne logs``: whole, its last lines, and a log that starts again."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace
from typing import cast

import pytest

from cerne.cli import listing
from cerne.client import Machine


class Log:
    """The log of a machine, which counts how much of it is read at once."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.most = 0

    def read_log(self, offset: int, *, engine: bool = False, most: int = 0) -> bytes:
        self.most = max(self.most, most)
        return b"" if offset < 0 else self.content[offset : offset + most]

    def log_size(self, *, engine: bool = False) -> int:
        return len(self.content)


Printed = pytest.CaptureFixture[bytes]


def _print(log: Log, monkeypatch: pytest.MonkeyPatch, **options: object) -> None:
    machine = SimpleNamespace(
        read_log=log.read_log, log_size=log.log_size, state=SimpleNamespace(live=False)
    )
    host = SimpleNamespace(get=lambda _name: machine)
    monkeypatch.setattr("cerne.client.connect", lambda: host)
    listing.logs("web", **options)  # type: ignore[arg-type]


def test_a_log_is_read_in_blocks(capsysbinary: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(b"0123456789\n" * 500_000)
    _print(log, monkeypatch)
    assert capsysbinary.readouterr().out == log.content
    assert log.most <= 1 << 20


@pytest.mark.parametrize(
    ("content", "lines", "last"),
    [
        (b"one\ntwo\nthree\n", 2, b"two\nthree\n"),
        (b"one\ntwo\nthree", 2, b"two\nthree"),
        (b"one\ntwo\n", 9, b"one\ntwo\n"),
        (b"one\ntwo\n", 0, b""),
        (b"one", 1, b"one"),
        (b"\n\n\n", 2, b"\n\n"),
        (b"", 3, b""),
        (b"first\n" + b"x" * 3_000_000 + b"\nlast\n", 2, b"x" * 3_000_000 + b"\nlast\n"),
    ],
)
def test_the_last_lines(
    capsysbinary: Printed, monkeypatch: pytest.MonkeyPatch, content: bytes, lines: int, last: bytes
) -> None:
    _print(Log(content), monkeypatch, tail=lines)
    assert capsysbinary.readouterr().out == last


def test_a_log_that_starts_again_is_followed_from_its_beginning(
    capsysbinary: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(b"a long beginning\n")
    lives = iter((True, True, False))
    contents = iter((b"again\n", b"again\nmore\n"))
    monkeypatch.setattr("time.sleep", lambda _: setattr(log, "content", next(contents)))

    class Followed:
        read_log, log_size = log.read_log, log.log_size

        @property
        def state(self) -> SimpleNamespace:
            return SimpleNamespace(live=next(lives))

    host = SimpleNamespace(get=lambda _name: cast("Machine", Followed()))
    monkeypatch.setattr("cerne.client.connect", lambda: host)
    listing.logs("web", follow=True)
    assert capsysbinary.readouterr().out == b"a long beginning\nagain\nmore\n"


def test_a_terminal_gets_characters_whole_and_no_controls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", terminal)
    show = listing._LogPrinter()
    for part in (b"caf\xc3", b"\xa9\r", b"\nbell\x07\r\n"):
        show(part)
    assert terminal.getvalue() == "café\nbell\\x07\n"
