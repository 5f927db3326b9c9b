"""Which engine ``auto`` takes, by what was measured of the host."""

from __future__ import annotations

from pathlib import Path

import pytest

from cerne.engine import select
from cerne.engine.native import NativeEngine
from cerne.engine.qemu import QemuEngine
from cerne.engine.qemu.accelerator import Accelerator
from cerne.engine.select import choose_engine
from cerne.errors import InputError
from cerne.host.probe import GuestSpeed

_FAST, _EMULATED = GuestSpeed(10**9, 10**9), GuestSpeed(10**9, 10**6)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(select, "has_passt", lambda: True)
    return monkeypatch


def _measured(host: pytest.MonkeyPatch, speed: GuestSpeed | None) -> None:
    host.setattr(select, "cached_guest_speed", lambda cache: speed)


def test_native_where_kvm_runs_kernels_at_speed(host: pytest.MonkeyPatch) -> None:
    _measured(host, _FAST)
    assert choose_engine("auto", Path()) == NativeEngine(emulated=False)
    assert choose_engine("qemu", Path()) == QemuEngine(Accelerator.KVM)
    host.setattr(select, "has_passt", lambda: False)
    assert choose_engine("auto", Path()) == QemuEngine(Accelerator.KVM)


@pytest.mark.parametrize("speed", [_EMULATED, None])
def test_qemu_elsewhere(host: pytest.MonkeyPatch, speed: GuestSpeed | None) -> None:
    _measured(host, speed)
    assert choose_engine("auto", Path()) == QemuEngine(Accelerator.TCG)
    assert choose_engine("native", Path()) == NativeEngine(emulated=speed is not None)


def test_another_is_refused() -> None:
    with pytest.raises(InputError, match="xen"):
        choose_engine("xen", Path())
