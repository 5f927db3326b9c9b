"""How many network cards a saved machine has, read without loading it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cerne.engine.native.saved_cards import saved_cards as of_native
from cerne.engine.qemu.saved_cards import saved_cards as of_qemu
from cerne.engine.saved import STATE_FILE
from cerne.errors import DamagedError
from cerne.vmm.snapshot import write_state

_CARD = {"device": {"mac": None, "offloads": 0, "waiting": ""}}


def _native(directory: Path, functions: object) -> int:
    path = directory / STATE_FILE
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    write_state(descriptor, {"pci": {"bus": {"functions": functions}}})
    os.close(descriptor)
    return of_native(directory)


def test_cards_of_our_own_vmm_are_counted(tmp_path: Path) -> None:
    others = {"0": {"config": ""}, "1": {"device": {"actual": 0}}, "2": {"device": {}}}
    assert _native(tmp_path, others) == 0
    assert _native(tmp_path, {**others, "3": _CARD, "20": _CARD}) == 2


@pytest.mark.parametrize("functions", [7, [], None])
def test_a_state_of_another_form_is_damaged(tmp_path: Path, functions: object) -> None:
    with pytest.raises(DamagedError):
        _native(tmp_path, functions)


def test_a_file_that_is_not_a_state_is_damaged(tmp_path: Path) -> None:
    for engine in (of_native, of_qemu):
        with pytest.raises(DamagedError):
            engine(tmp_path / "missing")
    (tmp_path / STATE_FILE).write_bytes(b"x" * 100)
    with pytest.raises(DamagedError):
        of_native(tmp_path)


def test_cards_of_qemu_are_counted_in_the_description_at_its_end(tmp_path: Path) -> None:
    state = tmp_path / STATE_FILE
    state.write_bytes(b"0000:00:02.0/virtio-net\0" * 9)
    assert of_qemu(tmp_path) is None
    names = ("timer", "0000:00:02.0/virtio-net", "0000:00:1e.0:00.0/virtio-net", "virtio-blk")
    devices = ", ".join(f'{{"name": "{name}", "instance_id": 0}}' for name in names)
    text = f'{{"configuration": {{}}, "devices": [{devices}]}}'
    with state.open("ab") as file:
        file.write(bytes(1 << 20) + text.encode())
    assert of_qemu(tmp_path) == 2
