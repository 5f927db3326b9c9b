"""Token buckets, which limit the requests and bytes a second of devices.

A bucket holds tokens for a tenth of a second, is full at first, and gets tokens at its rate. A
request begins when the bucket has its tokens; one that is larger than the bucket begins when the
bucket is full, and those after it wait longer. So in any time t no more begins than rate times t
and a full bucket, or the one largest request. A limiter has no clock: the caller says the time.
"""

from __future__ import annotations

import threading

_BURST = 0.1
"""Seconds at the rate that a full bucket holds; QEMU's default too (util/throttle.c)."""


class TokenBucket:
    """A bucket of some tokens a second. Times are in seconds, and never go back."""

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.size = max(1.0, rate * _BURST)
        """The tokens of a full bucket."""
        self._full_at = float("-inf")

    def wait(self, tokens: int, now: float) -> float:
        """Seconds until a request of so many tokens may begin; 0 if it may now."""
        rest = self.size - min(tokens, self.size)
        return max(0.0, self._full_at - now - rest / self.rate)

    def take(self, tokens: int, now: float) -> None:
        """Take tokens, also those that are not there yet."""
        self._full_at = max(self._full_at, now) + tokens / self.rate


class Limiter:
    """Limits requests and bytes a second together; without rates it limits nothing.

    Several threads may use it.
    """

    def __init__(self) -> None:
        self._change = threading.Lock()
        self._requests: TokenBucket | None = None
        self._bytes: TokenBucket | None = None
        self.active = False
        """Whether it limits anything."""

    def set(self, *, requests: int | None = None, size: int | None = None) -> None:
        """Set requests a second and bytes a second, each None for no limit; buckets are full."""
        with self._change:
            self._requests = None if requests is None else TokenBucket(requests)
            self._bytes = None if size is None else TokenBucket(size)
            self.active = bool(self._requests or self._bytes)

    def admit(self, size: int, now: float) -> float:
        """Begin a request of so many bytes; or return the seconds to wait before the next try."""
        with self._change:
            parts = self._parts(size)
            wait = max((bucket.wait(tokens, now) for bucket, tokens in parts), default=0.0)
            if wait == 0:
                for bucket, tokens in parts:
                    bucket.take(tokens, now)
            return wait

    def charge(self, size: int, now: float) -> None:
        """Count bytes that have moved, for which later requests wait."""
        with self._change:
            if self._bytes is not None:
                self._bytes.take(size, now)

    def _parts(self, size: int) -> list[tuple[TokenBucket, int]]:
        parts = ((self._requests, 1), (self._bytes, size))
        return [(bucket, tokens) for bucket, tokens in parts if bucket is not None]
