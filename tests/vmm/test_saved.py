"""Files that a VMM's process reads back, and that may be anybody's."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path

import pytest

from cerne.errors import DamagedError
from cerne.vmm.config import VmmConfig
from cerne.vmm.snapshot import VERSION, read_state, write_state

_NESTED = b"[" * 100_000
_NO_JSON = [b"", b"{", b"\xff", _NESTED, b"[]", b'"a"']


def _saved(content: bytes) -> int:
    """A file whose header says that all is well."""
    digest = hashlib.sha256(content).digest()
    descriptor = os.memfd_create("state")
    header = struct.pack("<8sIIQ32s", b"CERNEVM\0", VERSION, 62, len(content), digest)
    os.write(descriptor, header + content)
    return descriptor


@pytest.mark.parametrize("content", _NO_JSON)
def test_state_that_is_none_is_refused_in_words(content: bytes) -> None:
    with pytest.raises(DamagedError):
        read_state(_saved(content))


@pytest.mark.parametrize("content", _NO_JSON)
def test_a_configuration_that_is_none_is_refused_in_words(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_bytes(content)
    with pytest.raises(DamagedError):
        VmmConfig.read(path)


def test_state_is_read_as_it_was_written() -> None:
    state: dict[str, object] = {"a": [1, {"b": None}]}
    descriptor = os.memfd_create("state")
    write_state(descriptor, state)
    assert read_state(descriptor) == state
    assert json.dumps(read_state(_saved(json.dumps(state).encode()))) == json.dumps(state)
