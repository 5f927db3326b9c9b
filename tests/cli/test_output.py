"""What commands print."""

from __future__ import annotations

import json
import unicodedata
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cerne.cli.output import age, json_text, print_fields, print_json, print_table, printable


def test_a_table_is_aligned_and_has_no_colours_in_a_pipe(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_table(("NAME", "STATE"), [("a-long-name", "running"), ("b", "failed")], {"failed": "red"})
    assert capsys.readouterr().out.splitlines() == [
        "NAME         STATE",
        "a-long-name  running",
        "b            failed",
    ]


def test_a_table_has_the_columns_of_its_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [("1" * 12, "a-long-subject-of-an-operation", "p" * 60), ("2", "short", "q")]
    print_table(("ID", "SUBJECT", "PROGRESS"), rows, shortened=("PROGRESS", "SUBJECT"))
    assert "p" * 60 in capsys.readouterr().out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    for columns in (80, 40):
        monkeypatch.setenv("COLUMNS", str(columns))
        print_table(("ID", "SUBJECT", "PROGRESS"), rows, shortened=("PROGRESS", "SUBJECT"))
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) == columns
        assert lines[1].endswith("…")


def test_an_empty_table_has_its_headings(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("NAME", "STATE"), [])
    assert capsys.readouterr().out == "NAME  STATE\n"


def test_fields_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    print_fields({"id": "1", "state": "on"})
    assert capsys.readouterr().out == "id     1\nstate  on\n"


def test_fields_have_the_columns_of_their_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1")
    print_fields({"id": "1", "walls": "limits, namespaces, network, root, user, seccomp"})
    assert capsys.readouterr().out.splitlines() == [
        "id     1",
        "walls  limits, namespaces, network,",
        "       root, user, seccomp",
    ]


def test_json_keeps_letters_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"name": "é"})
    assert '"é"' in capsys.readouterr().out


@given(st.text(st.characters()) | st.sampled_from(["\x9b31m", "\u202e", "\x7f", "\ud800"]))
def test_json_steers_no_terminal_and_says_the_same(text: str) -> None:
    for indent in (None, 2):
        shown = json_text([text, {"a": text}], indent)
        assert json.loads(shown) == [text, {"a": text}]
        said = shown.replace("\n", "")
        assert not {unicodedata.category(each) for each in said} & {"Cc", "Cf", "Cs"}


@given(st.text())
def test_nothing_printable_steers_a_terminal(text: str) -> None:
    shown = printable(text)
    assert "\x1b" not in shown
    assert "\x9b" not in shown
    assert "\r" not in shown
    assert "\n" not in shown


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0s"), (59, "59s"), (61, "1m"), (7300, "2h"), (200_000, "2d")]
)
def test_ages_are_said_in_their_largest_unit(seconds: int, said: str) -> None:
    # Half a second of slack, so that the time the test itself takes does not count.
    assert age(datetime.now(UTC) - timedelta(seconds=seconds + 0.5)) == said
