"""A machine's process that is in an attacker's hands answers the manager anything."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.engine.conftest import Message
from tests.engine.test_qmp import Serve

from cerne.engine.native.instance import NativeInstance
from cerne.engine.plan import DiskPlan, KernelBoot, LaunchPlan
from cerne.engine.qemu import saving
from cerne.engine.qemu.instance import QemuInstance
from cerne.engine.qmp import balloon, memory
from cerne.engine.record import InstanceRecord
from cerne.errors import CerneError
from cerne.host.process import ProcessIdentity
from cerne.spec.resources import Resources
from cerne.units import GIB, MIB

Machine = NativeInstance | QemuInstance
_LIES: dict[str, object] = {
    "nothing": None,
    "a number": 1 << 80,
    "a negative number": -1,
    "a fraction": 1e308,
    "half of a character": "\ud800",
    "an empty list": [],
    "an empty object": {},
    "a list of nothing": [None, 7, "x", []],
    "objects without members": [{}],
    "members of other kinds": [
        {
            "type": "virtio-mem",
            "data": 7,
            "props": 7,
            "qdev": [7],
            "inserted": 7,
            "id": 7,
            "name": {},
            "fds": [7],
            "fdset-id": "x",
            "node-name": [],
            "stats": 7,
        }
    ],
    "numbers of other kinds": {
        "status": 7,
        "actual": "x",
        "base-memory": "x",
        "pids": [{}],
        "pause": -1,
        "fdset-id": [],
        "blocked-reasons": 7,
        "memory": None,
    },
}
_ASKED: dict[str, Callable[[Machine, Path], object]] = {
    "status": lambda machine, _: machine.status(),
    "cpus": lambda machine, _: machine.cpus(),
    "more cpus": lambda machine, _: machine.add_cpus(2),
    "memory": lambda machine, _: machine.memory(),
    "more memory": lambda machine, _: machine.resize_memory(GIB),
    "balloon": lambda machine, _: machine.set_memory(128 * MIB),
    "guest's memory": lambda machine, _: machine.stats(runs=False),
    "activity": lambda machine, _: machine.activity(),
    "limits": lambda machine, _: machine._limit_devices(Resources()),
    "plugged": lambda machine, _: machine.plugged(),
    "plug": lambda machine, path: machine.plug(DiskPlan(path / "disk", "raw", slot=0)),
    "unplug": lambda machine, _: machine.unplug(0, 0.01, force=False),
    "save": lambda machine, path: machine.save(path / "saved", (), resume=True),
    "fork": lambda machine, path: machine.fork((), [_plan(path, "child")]),
}


def _plan(directory: Path, name: str) -> LaunchPlan:
    place = directory / name
    place.mkdir(exist_ok=True)
    (directory / "kernel").touch()
    boot = KernelBoot(directory / "kernel", None, "")
    return LaunchPlan(name, name, 1, 256 * MIB, boot, (), (), (), place, place)


@pytest.mark.parametrize("kind", [NativeInstance, QemuInstance])
@pytest.mark.parametrize("asked", _ASKED)
def test_any_answer_is_an_error_in_words_or_no_answer(
    serve: Serve,
    directory: Path,
    asked: str,
    kind: type[Machine],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (memory, balloon):
        monkeypatch.setattr(module, "_PATIENCE", 0.01)
    monkeypatch.setattr(memory, "_LONG_PATIENCE", 0.01)
    monkeypatch.setattr(memory, "_MOMENT", 0.001)
    monkeypatch.setattr(saving, "_TIMEOUT", 0.01)
    process = ProcessIdentity.of(1)
    assert process is not None
    (directory / "saved").mkdir()
    (directory / "disk").write_bytes(bytes(4096))
    for lie in _LIES.values():

        def script(_: Message, lie: object = lie) -> list[Message]:
            return [{"return": lie}]

        plan = _plan(directory, "m")
        record = InstanceRecord.of(plan, process, "x", "y")
        record = dataclasses.replace(record, qmp=serve(script).path)
        machine = QemuInstance(record) if kind is QemuInstance else NativeInstance(record, False)
        with contextlib.suppress(CerneError):
            _ASKED[asked](machine, directory)
