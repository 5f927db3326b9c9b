"""What serves the user-mode cards of a machine that goes on from a saved state."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cerne.engine.plan import KernelBoot, LaunchPlan, UserNic
from cerne.engine.qemu.accelerator import Accelerator
from cerne.engine.qemu.engine import QemuEngine
from cerne.engine.qemu.user_cards import MARK, by_passt, has_own_user_mode
from cerne.engine.saved import SavedMachine
from cerne.units import MIB


@pytest.fixture
def plan(tmp_path: Path) -> LaunchPlan:
    boot = KernelBoot(tmp_path / "kernel", None, "")
    nics = (UserNic("02:00:00:00:00:01", ()),)
    return LaunchPlan("m", "m", 1, 16 * MIB, boot, (), nics, (), tmp_path, tmp_path)


def _saved(plan: LaunchPlan, fingerprint: str) -> LaunchPlan:
    SavedMachine(fingerprint, plan.memory, "0" * 64).write(plan.logs)
    return replace(plan, saved=plan.logs)


def _passt_is(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cerne.engine.qemu.user_cards.has_passt", lambda: there)
    monkeypatch.setattr("cerne.network.passt.has_passt", lambda: there)


def test_a_machine_that_was_saved_with_qemus_own_user_mode_goes_on_with_it(
    plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    _passt_is(True, monkeypatch)
    assert by_passt(plan)
    assert not has_own_user_mode(plan)
    old = _saved(plan, "qemu 2 pc-q35-7.2 tcg 0123456789abcdef")
    assert not by_passt(old)
    assert has_own_user_mode(old)
    assert by_passt(_saved(plan, f"qemu 2 pc-q35-7.2 tcg 0123456789abcdef{MARK}"))
    _passt_is(False, monkeypatch)
    assert has_own_user_mode(plan)


def test_a_fingerprint_says_whether_passt_serves_and_both_are_restored(
    monkeypatch: pytest.MonkeyPatch, qemu: Path
) -> None:
    engine = QemuEngine(Accelerator.TCG)
    _passt_is(True, monkeypatch)
    with_passt = engine.fingerprint()
    _passt_is(False, monkeypatch)
    assert with_passt == engine.fingerprint() + MARK
    assert engine.restores(with_passt)
    _passt_is(True, monkeypatch)
    assert engine.restores(engine.fingerprint().removesuffix(MARK))
