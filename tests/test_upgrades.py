"""Documents of older formats, and of formats that this code does not know."""

from __future__ import annotations

import pytest

from cerne.errors import DamagedError
from cerne.upgrades import Document, formats, require_format, upgraded


def _number_from_text(old: Document) -> Document:
    """Invented: format 2 has the size as a number of bytes, format 1 as text in KiB."""
    return {**old, "size": int(str(old["size"])) << 10}


def _disks_in_a_list(old: Document) -> Document:
    """Invented: format 3 has any number of disks, format 2 one or none."""
    new = {name: value for name, value in old.items() if name != "disk"}
    return new | {"disks": [] if old["disk"] is None else [old["disk"]]}


_UPGRADES = {1: _number_from_text, 2: _disks_in_a_list}


def test_each_upgrade_is_made_in_its_turn_and_changes_nothing_in_place() -> None:
    oldest: Document = {"size": "4", "disk": "vda"}
    assert upgraded(oldest, 1, 3, _UPGRADES, "it") == {"size": 4096, "disks": ["vda"]}
    assert oldest == {"size": "4", "disk": "vda"}
    assert upgraded({"size": 1, "disk": None}, 2, 3, _UPGRADES, "it") == {"size": 1, "disks": []}
    newest: Document = {"size": 1, "disks": []}
    assert upgraded(newest, 3, 3, _UPGRADES, "it") == newest
    assert list(formats(3, _UPGRADES)) == [1, 2, 3]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (4, "it was saved in format 4 by a newer Cerne, and this Cerne reads formats 1 to 3\n"),
        (0, "it was saved in format 0, and this Cerne reads formats 1 to 3\n"),
        ("x", "format x"),
        (True, "format True"),
        (None, "format None"),
    ],
)
def test_an_unknown_format_is_refused_in_words(found: object, words: str) -> None:
    with pytest.raises(DamagedError, match=words):
        require_format(found, 3, _UPGRADES, "it")


def test_the_only_format_is_named_alone() -> None:
    with pytest.raises(DamagedError, match="this Cerne reads format 6\n"):
        require_format(7, 6, {}, "it")


@pytest.mark.parametrize("document", [{}, {"size": "many", "disk": None}, {"size": "1"}])
def test_a_document_that_is_not_of_its_format_is_refused_in_words(document: Document) -> None:
    with pytest.raises(DamagedError, match="it is not valid in format"):
        upgraded(document, 1, 3, _UPGRADES, "it")
