"""Names of machines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cerne.errors import InputError
from cerne.spec.names import check_name


@pytest.mark.parametrize("name", ["a", "web-1", "Web_1.example", "x" * 63])
def test_names_that_are_allowed(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a/b",
        "..",
        "a..b",
        ".a",
        "a.",
        "-a",
        "a-",
        "a b",
        "a\n",
        "a\0",
        "ä",
        "x" * 64,
        "x" * 300,
    ],
)
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(InputError) as caught:
        check_name(name)
    assert "1 to 63" in caught.value.hint
    assert len(caught.value.message) < 300


@given(st.text())
def test_an_allowed_name_is_one_component_of_a_path(name: str) -> None:
    try:
        check_name(name)
    except InputError:
        return
    assert "/" not in name
    assert name not in (".", "..")
    assert name.isascii()
