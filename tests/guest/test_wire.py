"""Frames from a guest, which may send anything at all."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cerne.errors import GuestError
from cerne.guest import wire
from cerne.guest.client import _parse_info
from cerne.guest.wire import Decoder, Entry, EntryKind, Frame, FrameType, encode

_FRAMES = st.builds(Frame, st.sampled_from(FrameType), st.binary(max_size=300))
_ENTRIES = st.builds(
    Entry,
    st.sampled_from(EntryKind),
    st.integers(0, 2**32 - 1),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 10**9 - 1),
    st.integers(0, 2**64 - 1),
    st.binary(max_size=255),
    st.binary(max_size=300),
)


def test_sizes_are_those_of_the_agent() -> None:
    assert wire.HEADER.size == 8
    assert wire.HELLO.size == 28
    assert wire.EXEC.size == 12
    assert wire.ENTRY.size == 32


@given(st.lists(_FRAMES), st.integers(1, 50))
def test_frames_come_back_however_they_are_cut(frames: list[Frame], step: int) -> None:
    stream = b"".join(encode(frame.type, frame.payload) for frame in frames)
    decoder = Decoder()
    decoded = []
    for start in range(0, len(stream), step):
        decoder.feed(stream[start : start + step])
        while (frame := decoder.next()) is not None:
            decoded.append(frame)
    assert decoded == frames


@given(st.lists(st.binary(max_size=100)))
def test_anything_is_frames_or_refused(pieces: list[bytes]) -> None:
    decoder = Decoder()
    with contextlib.suppress(GuestError):
        for piece in pieces:
            decoder.feed(piece)
            assert len(decoder._buffer) <= wire.HEADER.size + wire.MAX_PAYLOAD
            while (frame := decoder.next()) is not None:
                assert len(frame.payload) <= wire.MAX_PAYLOAD


def test_a_frame_that_is_too_long() -> None:
    with pytest.raises(GuestError, match="32769 bytes"):
        Decoder().feed(wire.HEADER.pack(FrameType.DATA, wire.MAX_PAYLOAD + 1))


@given(_ENTRIES)
def test_entries_come_back(entry: Entry) -> None:
    assert Entry.unpack(entry.pack()) == entry


@given(st.binary(max_size=100))
def test_anything_is_an_entry_or_refused(payload: bytes) -> None:
    with contextlib.suppress(GuestError):
        entry = Entry.unpack(payload)
        assert len(entry.name) + len(entry.target) == len(payload) - wire.ENTRY.size


@given(st.binary(max_size=300))
def test_anything_is_information_or_refused(payload: bytes) -> None:
    with contextlib.suppress(GuestError):
        _parse_info(payload)


@pytest.mark.parametrize("uptime", ["inf", "nan", "-1", "1e999"])
def test_seconds_that_make_no_sense(uptime: str) -> None:
    names = ("hostname", "kernel", "architecture", "system", "boot_id", "agent_version")
    said = "\n".join([f"uptime={uptime}", *(f"{name}=x" for name in names)])
    with pytest.raises(GuestError, match="is not valid"):
        _parse_info(said.encode())


@given(st.binary())
def test_a_guests_words_are_safe_to_show(data: bytes) -> None:
    assert wire.readable(data).isprintable()


def test_escape_sequences_are_not_shown() -> None:
    assert wire.readable(b"\x1b[2Jhello\n") == "?[2Jhello?"
