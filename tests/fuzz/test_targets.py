"""The fuzzed entry points, by hypothesis and over the kept corpus; atheris is not needed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"


# Hypothesis itself prefers short ones, which do not get far.
LONG = st.builds(
    lambda seed, size: random.Random(seed).randbytes(size),
    st.integers(0, 1 << 32),
    st.integers(100, 800),
)
Changes = list[tuple[int, bytes]]


def _kept(name: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


@pytest.mark.parametrize("name", TARGETS)
@settings(deadline=None, max_examples=80)
@given(data=st.binary(max_size=300) | LONG)
def test_any_bytes_do_no_harm(name: str, data: bytes) -> None:
    TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
@settings(deadline=None, max_examples=60)
@given(
    which=st.integers(0, 1000),
    changes=st.lists(
        st.tuples(st.integers(0, 8192), st.binary(min_size=1, max_size=8)), max_size=8
    ),
)
def test_what_is_almost_right_does_no_harm(name: str, which: int, changes: Changes) -> None:
    kept = _kept(name)
    data = bytearray(kept[which % len(kept)])
    for position, piece in changes:
        at = position % (len(data) + 1)
        data[at : at + len(piece)] = piece
    TARGETS[name](bytes(data))


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_found_once_does_no_harm(name: str) -> None:
    kept = _kept(name)
    assert kept, "a target begins with something to change"
    for data in kept:
        TARGETS[name](data)
