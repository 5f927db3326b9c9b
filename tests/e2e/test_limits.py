"""Limits of a machine's disks and network: a guest that wants more gets no more."""

from __future__ import annotations

import time

import pytest
from tests.e2e.conftest import Cerne, Engine

from cerne.units import KIB

_PIECE = 64 * KIB
_PIECES = 24
_RATE = 512 * KIB
_IOPS = 20


def _seconds_to_write(cerne: Cerne) -> float:
    """How long its guest writes to its data disk, past the guest's cache."""
    begun = time.monotonic()
    words = ("if=/dev/zero", "of=/dev/vda", f"bs={_PIECE}", f"count={_PIECES}", "oflag=direct")
    cerne.ok("exec", "a", "--", "dd", *words)
    return time.monotonic() - begun


@pytest.mark.slow_if_emulated
def test_a_guest_writes_no_faster_than_its_limits(cerne: Cerne, engine: Engine) -> None:
    options = ("--data-disk", "8M", "--disk-rate", "512K")
    cerne.ok("run", "-d", "--name", "a", *engine.options, *options, "tiny")
    # A full bucket, and the last requests, which begin before their time is over.
    at_once = _RATE / 10 + 2 * _PIECE
    assert _seconds_to_write(cerne) * _RATE + at_once >= _PIECES * _PIECE

    # While its disk waits, the machine answers, and it is paused at once.
    cerne.ok("set", "a", "--disk-rate", "1K")
    writing = cerne.begin("exec", "a", "--", "dd", "if=/dev/zero", "of=/dev/vda", "bs=1M")
    assert cerne.ok("exec", "a", "--", "echo", "here") == "here\n"
    cerne.ok("pause", "a")
    cerne.ok("resume", "a")
    assert cerne.ok("exec", "a", "--", "echo", "again") == "again\n"
    cerne.ok("set", "a", "--disk-rate", "none")
    # The disk is full then.
    assert writing.wait(240) != 0

    cerne.ok("set", "a", "--disk-iops", str(_IOPS))
    assert _seconds_to_write(cerne) * _IOPS + _IOPS / 10 + 1 >= _PIECES

    if engine.name == "native":
        cerne.ok("set", "a", "--network-rate", "1M")
        cerne.ok("set", "a", "--network-rate", "none")
        return
    refused = cerne.refused("set", "a", "--network-rate", "1M", status=2)
    assert "qemu limits no network card" in refused
    words = ("run", "-d", "--name", "b", *engine.options, "--network-rate", "1M", "tiny")
    assert "qemu limits no network card" in cerne.refused(*words, status=125)
