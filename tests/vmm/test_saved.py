"""Files that a VMM's process reads back, and that may be anybody's."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path

import pytest
from tests.descriptors import open_descriptors

from cerne.devices.state import SavedState
from cerne.errors import DamagedError
from cerne.kvm.memory import BLOCK_SIZE, GuestAddress, GuestMemory
from cerne.units import GIB, MIB
from cerne.vmm import upgrade
from cerne.vmm.config import VmmConfig, disk_from_json, nic_from_json
from cerne.vmm.memory_file import memory_digest
from cerne.vmm.qmp import Request
from cerne.vmm.snapshot import read_state, restored_memory, write_memory, write_state

_NESTED = b"[" * 100_000
_NO_JSON = [b"", b"{", b"\xff", _NESTED, b"[]", b'"a"']


def _saved(content: bytes, number: int = upgrade.FORMAT) -> int:
    """A file whose header says that all is well."""
    digest = hashlib.sha256(content).digest()
    descriptor = os.memfd_create("state")
    header = struct.pack("<8sIIQ32s", b"CERNEVM\0", number, 62, len(content), digest)
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


@pytest.mark.parametrize("mac", ["", "52:54:00:00:00", "01:00:00:00:00:00", "zz:54:00:00:00:01"])
def test_what_is_no_address_of_a_card_is_refused(mac: str) -> None:
    nic = {"mac": mac, "link": 3, "kind": "stream", "mtu": None, "slot": None}
    with pytest.raises(DamagedError):
        nic_from_json(SavedState("a card", nic), int)


def test_half_a_character_is_no_text() -> None:
    with pytest.raises(DamagedError):
        SavedState("a disk", {"serial": "\ud800"}).text("serial", 20)


def test_a_refused_request_takes_no_descriptor_over() -> None:
    disk = {"files": [{"descriptor": 0, "format": "raw"}], "serial": 3}
    sent = os.memfd_create("disk")
    open_before = open_descriptors()
    with pytest.raises(DamagedError):
        Request(SavedState("the command", disk), (sent,)).take_over(disk_from_json)
    assert open_descriptors() == open_before
    whole = disk | {"serial": "", "read_only": False, "slot": None, "backend": None}
    taken = Request(SavedState("the command", whole), (sent,)).take_over(disk_from_json)
    assert taken.files[0].descriptor != sent
    os.close(taken.files[0].descriptor)
    os.close(sent)


def test_every_older_format_has_an_upgrade() -> None:
    assert sorted(upgrade.UPGRADES) == [*range(upgrade.OLDEST, upgrade.FORMAT)]


def test_a_state_of_an_older_format_goes_through_each_upgrade(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upgrade, "FORMAT", 8)
    monkeypatch.setattr(
        upgrade,
        "UPGRADES",
        {
            6: lambda state: {"clock": {"now": state["now"]}},
            7: lambda state: state | {"kind": "kvm-clock"},
        },
    )
    new = {"clock": {"now": 5}, "kind": "kvm-clock"}
    assert read_state(_saved(b'{"now": 5}', 6)) == new
    assert read_state(_saved(b'{"clock": {"now": 5}}', 7)) == new
    assert read_state(_saved(json.dumps(new).encode(), 8)) == new
    with pytest.raises(DamagedError, match="not valid in format 6"):
        read_state(_saved(b"{}", 6))


@pytest.mark.parametrize(("number", "said"), [(5, "Cerne reads format"), (2**31, "a newer Cerne")])
def test_a_format_that_is_not_known_is_refused(number: int, said: str) -> None:
    with pytest.raises(DamagedError, match=said):
        read_state(_saved(b"{}", number))


_GROWN = {"memory": 4 * MIB, "headroom": 4 * BLOCK_SIZE, "plugged": [0, 2]}


def _grown() -> GuestMemory:
    memory = GuestMemory.anonymous([(GuestAddress(0), 4 * MIB)])
    memory.reserve(GuestAddress(4 * GIB), 4 * BLOCK_SIZE)
    for block in (0, 2):
        memory.plug(block)
    memory.write(MIB, b"fixed")
    memory.write(4 * GIB + BLOCK_SIZE - 5, b"first")
    memory.write(4 * GIB + 2 * BLOCK_SIZE + 3 * MIB, b"third")
    return memory


def test_plugged_memory_is_saved_and_restored_with_its_holes() -> None:
    descriptor = os.memfd_create("memory")
    with _grown() as memory:
        assert write_memory(descriptor, memory) == memory_digest(descriptor)
        assert os.fstat(descriptor).st_size == 4 * MIB + 2 * BLOCK_SIZE
    with restored_memory(descriptor, dict(_GROWN)) as memory:
        assert (memory.fixed_size, sorted(memory.plugged)) == (4 * MIB, [0, 2])
        assert memory.room == (4 * GIB, 4 * BLOCK_SIZE)
        assert memory.read(MIB, 5) == b"fixed"
        assert memory.read(4 * GIB + BLOCK_SIZE - 5, 5) == b"first"
        assert memory.read(4 * GIB + 2 * BLOCK_SIZE + 3 * MIB, 5) == b"third"
        assert 4 * GIB + BLOCK_SIZE not in memory


@pytest.mark.parametrize(
    "changes",
    [
        {"plugged": [0, 4]},
        {"plugged": [2, 0]},
        {"plugged": [0, 0]},
        {"plugged": [0]},
        {"plugged": "x"},
        {"headroom": BLOCK_SIZE + 1},
        {"headroom": 1 << 40},
        {"headroom": 0},
        {"memory": 4 * MIB + 1},
        {"memory": 0},
    ],
)
def test_plugged_memory_that_is_not_possible_is_refused(changes: dict[str, object]) -> None:
    descriptor = os.memfd_create("memory")
    os.truncate(descriptor, 4 * MIB + 2 * BLOCK_SIZE)
    with pytest.raises(DamagedError):
        restored_memory(descriptor, {**_GROWN, **changes})


def test_a_state_from_before_has_no_room() -> None:
    old = upgrade.upgraded({"memory": 4 * MIB}, 6)
    assert (old["headroom"], old["plugged"]) == (0, [])
