"""The measured probe and its cache."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cerne.errors import KvmError
from cerne.host import probe
from cerne.host.probe import NATIVE_SPEED, GuestSpeed, cached_guest_speed, measure_guest_speed
from cerne.host.process import boot_id

SPEED = GuestSpeed(8_000_000_000, 1_700_000)


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """A file that is there and open, in the place of /dev/kvm."""
    device = tmp_path / "kvm"
    device.touch()
    return device


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Collects the devices that were measured."""
    devices: list[Path] = []

    def measure(device: Path) -> GuestSpeed:
        devices.append(device)
        return SPEED

    monkeypatch.setattr(probe, "measure_guest_speed", measure)
    return devices


def test_both_rings_are_measured(kvm_device: Path) -> None:
    speed = measure_guest_speed(kvm_device)
    assert speed.ring3_per_second > 0
    assert speed.ring0_per_second > 0


def test_an_emulated_ring_is_recognised() -> None:
    assert SPEED.ring3_native
    assert not SPEED.ring0_native
    assert GuestSpeed(NATIVE_SPEED, NATIVE_SPEED).ring0_native


def test_a_host_is_measured_once(tmp_path: Path, device: Path, measured: list[Path]) -> None:
    cache = tmp_path / "cache" / "speed.json"
    assert cached_guest_speed(cache, device) == SPEED
    assert cached_guest_speed(cache, device) == SPEED
    assert measured == [device]
    assert [path.name for path in cache.parent.iterdir()] == ["speed.json"]


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", '{"key": 1}', json.dumps({"key": "another boot", "ring3_per_second": 1})],
)
def test_a_cache_of_another_boot_or_a_damaged_one_is_written_anew(
    tmp_path: Path, device: Path, measured: list[Path], content: str
) -> None:
    cache = tmp_path / "speed.json"
    cache.write_text(content)
    assert cached_guest_speed(cache, device) == SPEED
    assert measured == [device]
    assert boot_id() in cache.read_text()


def test_a_cache_that_cannot_be_written_is_done_without(device: Path, measured: list[Path]) -> None:
    cache = Path("/proc/cerne/speed.json")
    assert cached_guest_speed(cache, device) == SPEED
    assert cached_guest_speed(cache, device) == SPEED
    assert len(measured) == 2


def test_there_is_no_speed_without_kvm(tmp_path: Path, measured: list[Path]) -> None:
    assert cached_guest_speed(tmp_path / "speed.json", tmp_path / "missing") is None
    assert measured == []


def test_there_is_no_speed_where_the_device_is_closed_to_this_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: Path, measured: list[Path]
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert cached_guest_speed(tmp_path / "speed.json", device) is None
    assert measured == []


def test_there_is_no_speed_where_kvm_runs_no_guest(tmp_path: Path, device: Path) -> None:
    with pytest.raises(KvmError):
        measure_guest_speed(device)
    assert cached_guest_speed(tmp_path / "speed.json", device) is None
