"""Token buckets: in any time no more begins than they allow, and what waits long enough begins."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cerne.devices.limiter import Limiter, TokenBucket

_RATES = st.integers(1, 10**9)
_PAUSES = st.floats(0, 10, allow_nan=False)


def _begun(limiter: Limiter, sizes: list[int], pauses: list[float]) -> list[tuple[float, int]]:
    """The requests with the times at which they begin, each as soon as it may."""
    now, begun = 0.0, []
    for size, pause in zip(sizes, pauses, strict=False):
        now += pause
        while wait := limiter.admit(size, now):
            # As clocks and sleeps are: the time that is waited is not exact.
            now = max(now + wait, now * (1 + 1e-12))
        begun.append((now, size))
    return begun


@given(_RATES, st.lists(st.integers(0, 10**8), max_size=40), st.lists(_PAUSES, max_size=40))
def test_no_window_has_more_bytes_than_the_rate_and_a_full_bucket(
    rate: int, sizes: list[int], pauses: list[float]
) -> None:
    limiter = Limiter()
    limiter.set(size=rate)
    begun = _begun(limiter, sizes, pauses)
    for first, (start, _) in enumerate(begun):
        total = 0
        largest = TokenBucket(rate).size
        for end, size in begun[first:]:
            total += size
            largest = max(largest, size)
            assert total <= (rate * (end - start) + largest) * (1 + 1e-6) + 1


@given(st.integers(1, 10**6), st.lists(_PAUSES, max_size=60))
def test_no_window_has_more_requests_than_the_rate_and_a_full_bucket(
    rate: int, pauses: list[float]
) -> None:
    limiter = Limiter()
    limiter.set(requests=rate)
    times = [time for time, _ in _begun(limiter, [512] * len(pauses), pauses)]
    for first, start in enumerate(times):
        for count, end in enumerate(times[first:], start=1):
            assert count <= (rate * (end - start) + max(1, rate / 10)) * (1 + 1e-6) + 1e-3


@given(_RATES, st.lists(st.integers(0, 10**6), min_size=1, max_size=20))
def test_what_waits_as_long_as_it_is_told_begins(rate: int, sizes: list[int]) -> None:
    bucket, now = TokenBucket(rate), 0.0
    for size in sizes:
        now += bucket.wait(size, now)
        assert bucket.wait(size, now) <= 1e-6 * max(1.0, now)
        bucket.take(size, now)
    # The average is the rate, if no more is asked for than there is.
    assert now <= sum(sizes) / rate + 1e-6


def test_both_limits_hold() -> None:
    limiter = Limiter()
    limiter.set(requests=10, size=1000)
    assert limiter.admit(100, 0.0) == 0
    assert limiter.admit(0, 0.0) == pytest.approx(0.1)
    assert limiter.admit(100, 0.05) == pytest.approx(0.05)
    # What did not begin has taken nothing.
    assert limiter.admit(100, 0.1) == 0
    limiter.charge(1000, 0.1)
    assert limiter.admit(0, 0.2) == pytest.approx(0.9)


def test_without_limits_all_begins_and_a_new_limit_has_a_full_bucket() -> None:
    limiter = Limiter()
    assert [limiter.active] == [False]
    assert [limiter.admit(1 << 40, 0.0) for _ in range(3)] == [0, 0, 0]
    limiter.set(size=10)
    assert [limiter.active] == [True]
    assert (limiter.admit(50, 0.0), limiter.admit(1, 0.0) > 4) == (0, True)
    limiter.set(size=20)
    assert limiter.admit(1, 0.0) == 0
    limiter.set()
    assert limiter.admit(1 << 40, 0.0) == 0
