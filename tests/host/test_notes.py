"""What is noted for the next command."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cerne.host.notes import Notes


def test_notes_are_taken_once(tmp_path: Path) -> None:
    notes = Notes(tmp_path)
    with notes.taken() as none:
        assert none == []
    notes.add("one\nthing")
    notes.add("another")
    with notes.taken() as words:
        assert words == ["one\nthing", "another"]
    notes.add("a third")
    with Notes(tmp_path).taken() as words:
        assert words == ["a third"]


def test_any_characters_are_noted(tmp_path: Path) -> None:
    words = 'a \\ and " in \\"both\\n", \x1b[1m\x9b \u202e \ud800 \x00 \N{GREEK SMALL LETTER ALPHA}'
    Notes(tmp_path).add(words)
    with Notes(tmp_path).taken() as taken:
        # Half of a surrogate pair is no text.
        assert taken == [words.replace("\ud800", "?")]


def test_notes_that_could_not_be_told_are_kept(tmp_path: Path) -> None:
    notes = Notes(tmp_path)
    notes.add("one")
    with pytest.raises(OSError, match="full"), notes.taken():
        raise OSError("the disk is full")
    with notes.taken() as words:
        assert words == ["one"]


def test_what_is_no_note_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "notes").write_bytes(b'"one"\n"two\n\xff\n[1]\n"three"\n')
    with Notes(tmp_path).taken() as words:
        assert words == ["one", "three"]


@pytest.mark.parametrize("lie", [b"[" * 200_000, b'"\\ud800"', b'"x' + b"y" * 10_000 + b'"'])
def test_a_lie_is_text_that_can_be_kept(tmp_path: Path, lie: bytes) -> None:
    (tmp_path / "notes").write_bytes(b'"one"\n' + lie + b'\n"two"\n')
    with Notes(tmp_path).taken() as words:
        assert words[0] == "one"
        assert all(len(each.encode()) <= 8000 for each in words)
    assert (tmp_path / "notes").stat().st_size == 0


def test_notes_without_end_are_read_to_a_limit(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.write_bytes(b'"again"\n' * 100_000)
    with Notes(tmp_path).taken() as words:
        assert 0 < len(words) <= 50
    os.truncate(notes, 1 << 43)
    with Notes(tmp_path).taken() as words:
        assert words == []
    assert notes.stat().st_size == 0
