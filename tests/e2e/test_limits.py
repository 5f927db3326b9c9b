"""Limits of a machine's disks and network: a guest that wants more gets no more."""

from __future__ import annotations

import time

import pytest
from tests.e2e.conftest import Cerne, Engine

from cerne.errors import CerneError, InputError
from cerne.manager import Machine, Manager
from cerne.manager.machines.adjust import adjust
from cerne.spec.machine import machine_spec
from cerne.units import KIB, MIB

_PIECE = 64 * KIB
_PIECES = 24


def _write(cerne: Cerne, flag: str = "oflag=direct") -> None:
    """Write to its data disk past the guest's cache."""
    words = ("of=/dev/vda", "if=/dev/zero", f"bs={_PIECE}", f"count={_PIECES}", flag)
    cerne.ok("exec", "a", "--", "dd", *words)


def _set(machine: Machine, **values: object) -> None:
    adjust(machine._context, values)


def test_a_guest_writes_no_faster_than_its_limits(
    cerne: Cerne, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CERNE_HOME", str(cerne.home))
    cerne.ok("run", "-d", "--name", "a", *engine.options, "--data-disk", "8M", "tiny")
    with Manager() as manager:
        machine = manager.get("a")
        rate = MIB // 2
        _set(machine, disk_rate=rate)
        begun = time.monotonic()
        _write(cerne)
        # A full bucket, and the last requests, which begin before their time is over.
        at_once = rate / 10 + 2 * _PIECE
        assert rate * (time.monotonic() - begun) + at_once >= _PIECES * _PIECE
        # While its disk waits, the machine answers.
        _set(machine, disk_rate=KIB)
        writing = cerne.begin("exec", "a", "--", "dd", "if=/dev/zero", "of=/dev/vda", "bs=1M")
        assert cerne.ok("exec", "a", "--", "echo", "here") == "here\n"
        machine.pause()
        machine.resume()
        assert cerne.ok("exec", "a", "--", "echo", "again") == "again\n"
        _set(machine, disk_rate="none")
        assert writing.wait(120) != 0
        _set(machine, disk_iops=20)
        begun = time.monotonic()
        _write(cerne)
        assert 20 * (time.monotonic() - begun) + 20 / 10 + 1 >= _PIECES
        _limit_network(manager, engine)


def _limit_network(manager: Manager, engine: Engine) -> None:
    """The native engine limits the network, and QEMU says that it does not."""
    machine = manager.get("a")
    if engine.name == "native":
        _set(machine, network_rate="1M")
        _set(machine, network_rate="none")
        return
    with pytest.raises(InputError, match="QEMU limits no network card"):
        _set(machine, network_rate="1M")
    assert machine.spec.resources.network.receive is None
    with pytest.raises(CerneError, match="QEMU limits no network card"):
        manager.create(machine_spec(name="b", engine="qemu", network_rate="1M")).start()
