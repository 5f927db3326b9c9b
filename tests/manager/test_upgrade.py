"""Rows, manifests and archives with specifications that an older Cerne wrote."""

from __future__ import annotations

import gzip
import sqlite3
from pathlib import Path

import pytest

from cerne.client import Host
from cerne.manager import Machine, Manager
from cerne.manager.snapshots.manifest import read_manifest
from cerne.spec.disk import Disk
from cerne.spec.machine import machine_spec
from cerne.spec.upgrade import stored_spec
from cerne.units import MIB

_OLD = Path(__file__).parents[1] / "spec" / "fixtures" / "1"


def _old(name: str) -> str:
    return (_OLD / f"{name}.json").read_text()


@pytest.mark.parametrize("name", ["plain", "everything"])
def test_a_manifest(name: str) -> None:
    manifest = read_manifest(_old(f"manifest-{name}"), "a snapshot")
    assert manifest.spec == stored_spec(_old(f"spec-{name}"), name)
    assert read_manifest(manifest.model_dump_json(), "a snapshot") == manifest


def test_an_archive(host: Host, tmp_path: Path) -> None:
    source = tmp_path / "snapshot.cerne"
    source.write_bytes(gzip.decompress((_OLD / "snapshot.cerne.gz").read_bytes()))
    snapshot = host.import_snapshot(source)
    assert snapshot.name == "old"
    machine = snapshot.restore_as("again", ["18081:80"])
    assert machine.spec == machine_spec(
        name="again",
        image="blank",
        memory="64M",
        disk="3M",
        ports=["18081:80"],
        labels={"a": "b"},
    )


def test_a_row_of_the_store_which_is_written_anew_when_it_changes(
    manager: Manager, machine: Machine
) -> None:
    old = _old("spec-plain").replace("plain", machine.name)
    with sqlite3.connect(manager.home.store) as store:
        store.execute("UPDATE machines SET spec = ?", (old,))
    found = manager.get(machine.name)
    assert found.spec == machine_spec(name=machine.name)
    found.attach_disk("1M")
    found.attach_nic()
    spec = manager.get(machine.name).spec
    assert spec.disks == (Disk(serial="data1", slot=0, size=MIB),)
    assert [nic.slot for nic in spec.nics] == [None, 1]
    with sqlite3.connect(manager.home.store) as store:
        ((text,),) = store.execute("SELECT spec FROM machines")
    assert text.startswith('{"version":3,')


def test_a_pool(manager: Manager) -> None:
    manager.create_pool("workers", machine_spec(name="workers", memory="64M", image="blank"), 0)
    with sqlite3.connect(manager.home.store) as store:
        store.execute("UPDATE pools SET spec = ?", (_old("pool"),))
    assert manager.pool("workers").spec == machine_spec(name="workers", cpus=2, memory="256M")
