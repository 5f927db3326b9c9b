"""Guest memory for devices to work on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cerne.kvm.memory import GuestAddress, GuestMemory

MEMORY_SIZE = 1 << 20


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    """One MiB from address 0 on."""
    with GuestMemory.shared([(GuestAddress(0), MEMORY_SIZE)]) as memory:
        yield memory
