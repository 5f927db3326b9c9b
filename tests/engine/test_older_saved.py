"""Machines of `native` that older code saved, kept in ``saved/format-N``: they go on here."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest
from tests.engine.fleet import Fleet

from cerne.engine.native import NativeEngine
from cerne.engine.plan import DiskPlan
from cerne.engine.saved import SavedMachine
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
