"""Machines of `native` that older code saved, kept in ``saved/format-N``: they go on here."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest
from tests.engine.fleet import Fleet

from cerne.engine import saved as saved_machine
from cerne.engine.native import NativeEngine
from cerne.engine.plan import DiskPlan
from cerne.engine.saved import MANIFEST_FILE, SavedMachine
from cerne.errors import DamagedError
from cerne.host.processor import processor_fingerprint
from cerne.storage.overlay import create_empty
from cerne.units import MIB
from cerne.vmm.snapshot import read_state
from cerne.vmm.upgrade import FORMAT, OLDEST

_KEPT = Path(__file__).parent / "saved"
_FORMATS = range(OLDEST, FORMAT + 1)


def _unpacked(number: int, directory: Path) -> Path:
    """A copy of what was saved in a format: the counting guest, at 3, with a disk in slot 3."""
    kept = _KEPT / f"format-{number}"
    directory.mkdir()
    for name in ("state", "memory"):
        (directory / name).write_bytes(lzma.decompress((kept / f"{name}.xz").read_bytes()))
    (directory / "manifest.json").write_bytes((kept / "manifest.json").read_bytes())
    return directory


@pytest.mark.parametrize("number", _FORMATS)
def test_its_state_is_that_of_today(number: int, fleet: Fleet, tmp_path: Path) -> None:
    new = fleet.save("a")
    with (
        (_unpacked(number, tmp_path / "old") / "state").open("rb") as old_file,
        (new / "state").open("rb") as new_file,
    ):
        old, today = read_state(old_file.fileno()), read_state(new_file.fileno())
    assert _shape(old["board"]) == _shape(today["board"])
    assert old.keys() == today.keys()


def _shape(state: object) -> object:
    """The names in a state; what a device has many of is not counted."""
    if isinstance(state, dict):
        return {name: _shape(value) for name, value in state.items()}
    return None


@pytest.mark.parametrize("number", _FORMATS)
def test_it_goes_on(number: int, fleet: Fleet, home: Path, tmp_path: Path) -> None:
    saved = _unpacked(number, tmp_path / "old")
    processor = SavedMachine.read(saved).fingerprint.split()[-1]
    if processor != processor_fingerprint():
        pytest.skip("it was saved on another kind of processor, and goes on there alone")
    disk = home / "data.qcow2"
    create_empty(disk, MIB)
    fleet.change("b", (DiskPlan(disk, "qcow2", serial="data", slot=3),))
    fleet.start("b", saved)
    assert fleet.say("b", b"i") == 4


def test_all_formats_that_are_read_are_restored() -> None:
    engine = NativeEngine(emulated=False)
    processor = processor_fingerprint()
    for number in _FORMATS:
        assert engine.restores(f"native {number} {processor}")
    for other in (f"native {OLDEST - 1} {processor}", f"native {FORMAT + 1} {processor}"):
        assert not engine.restores(other)
    assert not engine.restores(f"native {FORMAT} 0123456789abcdef")


def _write_manifest(directory: Path, **fields: object) -> SavedMachine:
    (directory / MANIFEST_FILE).write_text(json.dumps(fields))
    return SavedMachine.read(directory)


_FIRST = {
    "fingerprint": "native 6 0123456789abcdef",
    "memory": 16 * MIB,
    "state_digest": "ab",
    "memory_digest": "cd",
    "memory_stamp": "1:2:3:4",
    "format": 1,
}


def test_the_first_manifests_named_no_balloon(tmp_path: Path) -> None:
    assert _write_manifest(tmp_path, **_FIRST).balloon
    assert not _write_manifest(tmp_path, **_FIRST, balloon=False).balloon


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 2}, "was saved in format 2 by a newer Cerne, and this Cerne reads format 1"),
        ({"format": "1"}, "was saved in format 1, and"),
        ({"memory": "16"}, "memory"),
        ({"balloon": 1}, "balloon"),
        ({"fingerprint": None}, "fingerprint"),
    ],
)
def test_a_manifest_that_is_not_valid_is_refused(
    changes: dict[str, object], words: str, tmp_path: Path
) -> None:
    with pytest.raises(DamagedError, match=words):
        _write_manifest(tmp_path, **{**_FIRST, **changes})


def test_a_next_manifest_reads_what_this_one_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invented: in format 2 the size of memory is called so, in format 1 it had another name."""
    written = {("size" if name == "memory" else name): value for name, value in _FIRST.items()}
    monkeypatch.setattr(saved_machine, "_FORMAT", 2)
    monkeypatch.setattr(saved_machine, "_UPGRADES", {1: lambda old: {**old, "memory": old["size"]}})
    assert _write_manifest(tmp_path, **written).memory == 16 * MIB
