"""Sizes and durations, both ways."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cerne.errors import InputError
from cerne.units import GIB, KIB, MIB, counted, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512M", 512 * MIB),
        ("512MiB", 512 * MIB),
        ("1.5G", GIB + 512 * MIB),
        ("2GB", 2 * 10**9),
        ("4096", 4096),
        (" 64 k ", 64 * KIB),
        (4096, 4096),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "12 bananas", "-1G", "1.5", "M", "1e9", "nan", "9" * 19])
def test_no_sizes(text: str) -> None:
    with pytest.raises(InputError, match="is not a"):
        parse_size(text)


@given(st.text(max_size=30))
def test_any_text_is_a_size_or_refused(text: str) -> None:
    try:
        assert parse_size(text) >= 0
    except InputError as error:
        assert error.hint


@given(st.integers(min_value=0, max_value=1023), st.sampled_from([KIB, MIB, GIB]))
def test_whole_sizes_survive_the_round_trip(count: int, unit: int) -> None:
    assert parse_size(format_size(count * unit)) == count * unit


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("1.5s", 1.5), ("250ms", 0.25), ("2m", 120), (3, 3)]
)
def test_durations(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-1s", "1 fortnight"])
def test_no_durations(text: str) -> None:
    with pytest.raises(InputError):
        parse_duration(text)


@pytest.mark.parametrize(
    ("number", "noun", "words"),
    [
        (1, "CPU", "1 CPU"),
        (0, "CPU", "0 CPUs"),
        ("1.5", "CPU", "1.5 CPUs"),
        (2, "entry", "2 entries"),
    ],
)
def test_counted(number: int | str, noun: str, words: str) -> None:
    assert counted(number, noun) == words
