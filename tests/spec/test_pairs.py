"""Keys and values."""

from __future__ import annotations

import pytest

from cerne.errors import InputError
from cerne.spec.pairs import parse_pairs


def test_pairs() -> None:
    assert parse_pairs(["A=1", "B=x=y", "C="], "--env") == {"A": "1", "B": "x=y", "C": ""}
    assert parse_pairs([], "--env") == {}


@pytest.mark.parametrize("wrong", ["A", "=1"])
def test_what_is_no_pair_is_told(wrong: str) -> None:
    with pytest.raises(InputError, match=f"--env {wrong!r} is not KEY=VALUE"):
        parse_pairs([wrong], "--env")
