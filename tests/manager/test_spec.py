"""What a specification names on this host, looked at when a machine is made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cerne.client import Host
from cerne.errors import InputError, NotFoundError
from cerne.manager import Manager
from cerne.spec.machine import machine_spec
from cerne.storage.overlay import create_empty
from cerne.units import MIB


def _refused(manager: Manager, **fields: object) -> InputError:
    with pytest.raises(InputError) as refused:
        manager.create(machine_spec(name="a", image="blank", memory="64M", **fields))
    assert manager.machines() == []
    return refused.value


def test_a_directory_that_is_not_there_is_not_mounted(manager: Manager) -> None:
    error = _refused(manager, mounts=["/nowhere/at all:/x"])
    assert "does not exist" in error.message
    assert "mkdir -p '/nowhere/at all'" in error.hint


def test_a_file_that_is_to_be_mounted_is_not_to_be_made_a_directory(
    manager: Manager, tmp_path: Path
) -> None:
    (tmp_path / "a file").touch()
    error = _refused(manager, mounts=[f"{tmp_path}/a file:/x"])
    assert "mkdir" not in error.hint
    assert f"cerne cp '{tmp_path}/a file' NAME:/x" in error.hint


def test_a_home_of_nobody_is_told(manager: Manager) -> None:
    assert "~nobody-at-all/x" in _refused(manager, mounts=["~nobody-at-all/x:/x"]).message


def test_paths_are_made_whole_where_the_person_stands(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shared").mkdir()
    create_empty(tmp_path / "data", MIB)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    asked = machine_spec(
        name="a", image="blank", memory="64M", mounts=["~/shared:/x"], data_disks=["data", "1M"]
    )
    spec = host.create(asked).spec
    assert spec.mounts[0].source == tmp_path / "shared"
    assert [(disk.path, disk.read_as) for disk in spec.data_disks] == [
        (tmp_path / "data", "qcow2"),
        (None, "qcow2"),
    ]


def test_the_same_file_by_two_names_is_no_two_disks(
    manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_empty(tmp_path / "data", MIB)
    monkeypatch.chdir(tmp_path)
    error = _refused(manager, data_disks=["data", f"{tmp_path}/data"])
    assert "given twice" in error.message


def test_a_file_that_is_not_there_is_no_disk(host: Host, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        host.create(
            machine_spec(name="a", image="blank", memory="64M", data_disks=[f"{tmp_path}/none"])
        )


def test_a_pool_keeps_whole_paths(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shared").mkdir()
    monkeypatch.chdir(tmp_path)
    spec = machine_spec(name="p", image="blank", memory="64M", mounts=["shared:/x"])
    assert host.create_pool("p", spec, 0).spec.mounts[0].source == tmp_path / "shared"


def test_a_disk_that_the_user_may_not_write_to_is_refused(
    manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_empty(tmp_path / "data", MIB)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    error = _refused(manager, data_disks=[f"{tmp_path}/data"])
    assert "you may not write to the disk" in error.message
    assert f"{tmp_path}/data:ro" in error.hint
    asked = machine_spec(name="a", image="blank", memory="64M", data_disks=[f"{tmp_path}/data:ro"])
    assert manager.create(asked).spec.data_disks[0].read_only


def test_a_directory_that_the_user_may_not_read_is_refused(
    manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    error = _refused(manager, mounts=[f"{tmp_path}:/x"])
    assert "you may not read the directory" in error.message
    assert f"ls -ld {tmp_path}" in error.hint
