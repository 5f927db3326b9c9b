"""The measured speed at which this host's kernel runs guest code.

A host may have a /dev/kvm that runs a guest's programs (ring 3) at full speed and its kernel (ring
0) instruction by instruction, two hundred times slower; no flag shows this. The result is valid
until the host reboots or loads its KVM module again, and is kept in a file until then.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from cerne.errors import KvmError
from cerne.host.process import boot_id

KVM_DEVICE = Path("/dev/kvm")

NATIVE_SPEED = 100_000_000
"""Instructions a second: every processor exceeds them, and no emulation reaches them."""


@dataclass(frozen=True, slots=True)
class GuestSpeed:
    """Instructions of a guest that the host runs in one second of CPU time."""

    ring3_per_second: int
    ring0_per_second: int

    @property
    def ring3_native(self) -> bool:
        """Whether a guest's programs run at hardware speed."""
        return self.ring3_per_second >= NATIVE_SPEED

    @property
    def ring0_native(self) -> bool:
        """Whether a guest's kernel runs at hardware speed."""
        return self.ring0_per_second >= NATIVE_SPEED


def measure_guest_speed(device: Path = KVM_DEVICE) -> GuestSpeed:
    """Run two small guests, one in each ring; this takes less than 0.1 s on most hosts.

    Raises:
        KvmError: the device does not open, or runs no guest.
    """
    # Imported here, because the figures in the cache need no hypervisor.
    from cerne.host.speed import measure_ring

    return GuestSpeed(measure_ring(device, 3), measure_ring(device, 0))


def cached_guest_speed(cache: Path, device: Path = KVM_DEVICE) -> GuestSpeed | None:
    """As `measure_guest_speed`, but once per boot; None if this user has no working KVM.

    `cache` is the file for the figures; if it is not writable, they are measured each time.
    """
    try:
        key = f"{boot_id()} {device.stat().st_ctime_ns}"
    except OSError:
        return None
    if not os.access(device, os.R_OK | os.W_OK):
        return None
    speed = _load(cache, key)
    if speed is None:
        try:
            speed = measure_guest_speed(device)
        except KvmError:
            return None
        _save(cache, key, speed)
    return speed


def _load(cache: Path, key: str) -> GuestSpeed | None:
    try:
        saved = json.loads(cache.read_text())
        if saved["key"] != key:
            return None
        return GuestSpeed(int(saved["ring3_per_second"]), int(saved["ring0_per_second"]))
    except (OSError, ValueError, KeyError, TypeError):
        # An unreadable or damaged cache is written again.
        return None


def _save(cache: Path, key: str, speed: GuestSpeed) -> None:
    draft = cache.with_name(f"{cache.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps({"key": key, **asdict(speed)}))
        draft.replace(cache)
