"""Access to a chain's bytes across the driver's buffers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Views = tuple[memoryview, ...]


def split(views: Sequence[memoryview], length: int) -> tuple[Views, Views]:
    """The first `length` bytes, or all if there are fewer, and the rest."""
    if views and len(views[0]) > length > 0:
        return (views[0][:length],), (views[0][length:], *views[1:])
    first: list[memoryview] = []
    rest: list[memoryview] = []
    for view in views:
        taken = min(len(view), length)
        length -= taken
        if taken:
            first.append(view[:taken])
        if taken < len(view):
            rest.append(view[taken:])
    return tuple(first), tuple(rest)


def gather(views: Iterable[memoryview]) -> bytes:
    """A copy in one piece; for short data."""
    return b"".join(views)


def scatter(views: Iterable[memoryview], data: bytes | memoryview) -> int:
    """Copy as much of `data` as fits; returns how much did."""
    done = 0
    for view in views:
        piece = data[done : done + len(view)]
        view[: len(piece)] = piece
        done += len(piece)
    return done


def size_of(views: Iterable[memoryview]) -> int:
    """The bytes of all views."""
    return sum(map(len, views))
