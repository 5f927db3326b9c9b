"""Specifications that older code wrote are read to exactly what they meant.

``fixtures/N`` holds what the code of version N wrote. The same names in ``fixtures/3`` are what
this code makes of them and writes: what changes that raises the version.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cerne.errors import DamagedError
from cerne.spec.disk import Disk
from cerne.spec.machine import MachineSpec, machine_spec
from cerne.spec.mount import Mount
from cerne.spec.nic import Nic
from cerne.spec.ports import Protocols, PublishedPort
from cerne.spec.resources import CpuResources, Resources
from cerne.spec.upgrade import stored_spec
from cerne.units import GIB

_FIXTURES = Path(__file__).parent / "fixtures"
_SPECS = {
    "spec-plain": machine_spec(name="plain"),
    "spec-everything": MachineSpec(
        name="web",
        image="debian:12",
        cpus=4,
        memory=2 * GIB,
        balloon=GIB,
        resources=Resources(cpu=CpuResources(weight=300)),
        disks=(
            Disk(serial="root", size=20 * GIB),
            Disk(serial="data1", slot=0, size=GIB),
            Disk(serial="films", slot=2, path=Path("/srv/films.raw"), format="raw", read_only=True),
        ),
        nics=(
            Nic(
                ports=(
                    PublishedPort("127.0.0.1", 8080, 80),
                    PublishedPort("0.0.0.0", 0, 53, Protocols.UDP),
                )
            ),
            Nic(slot=1),
            Nic(slot=3, network="tap:tap7"),
        ),
        mounts=(
            Mount(source=Path("/srv/www"), target="/srv", read_only=True),
            Mount(source=Path("/home/a b"), target="/home"),
        ),
        labels={"of": "x", "empty": ""},
        engine="qemu",
    ),
    "spec-tap": MachineSpec(name="tapped", nics=(Nic(network="tap:tap0"),), engine="native"),
    "spec-no-network": MachineSpec(name="lonely", nics=(Nic(slot=5, network="tap:tap1"),)),
    "spec-none-at-all": MachineSpec(name="island", nics=()),
    "pool": machine_spec(name="workers", cpus=2, memory="256M"),
}


@pytest.mark.parametrize("version", ["1", "2", "3"])
@pytest.mark.parametrize("name", _SPECS)
def test_what_was_written_is_read(version: str, name: str) -> None:
    text = (_FIXTURES / version / f"{name}.json").read_text()
    assert stored_spec(text, name) == _SPECS[name]


@pytest.mark.parametrize("name", _SPECS)
def test_what_is_written_is_what_its_version_says(name: str) -> None:
    written = json.loads(_SPECS[name].model_dump_json())
    kept = json.loads((_FIXTURES / "3" / f"{name}.json").read_text())
    assert _is_in(kept, written), written


def _is_in(kept: object, written: object) -> bool:
    """Whether all that is kept is written; a field that came later has its default there."""
    if isinstance(kept, dict):
        assert isinstance(written, dict)
        return all(name in written and _is_in(kept[name], written[name]) for name in kept)
    if isinstance(kept, list):
        assert isinstance(written, list)
        return len(kept) == len(written) and all(map(_is_in, kept, written))
    return kept == written


@pytest.mark.parametrize(
    "text",
    [
        '{"version": 1, "name": "a", "data_disks": 1}',
        '{"version": 1, "name": "a", "data_disks": [1]}',
        '{"version": 1, "name": "a", "data_disks": [{"size": 1}]}',
        '{"version": 1, "name": "a", "extra_nics": "user"}',
        '{"version": 1, "name": "a", "extra_nics": [{"network": "user"}]}',
        '{"version": 1, "name": "a", "ports": {"1": 2}}',
        '{"version": 1, "name": "a", "network": "none", "ports": [{}]}',
        '{"version": 1, "name": "a", "disk": "big"}',
        '{"version": 1, "name": "../x"}',
        '{"version": 1, "name": "a", "disks": [], "colour": 1}',
        '{"version": 0, "name": "a"}',
        '{"version": [], "name": "a"}',
        '{"version": 2, "name": "a", "disk": null}',
        '{"version": 3, "name": "a", "cpu_weight": 1}',
        '{"version": 2, "name": "a", "cpu_weight": {}}',
        '{"version": 3, "name": "a", "resources": {"cpu": {"limit": "fast"}}}',
        '{"version": 4, "name": "a"}',
    ],
)
def test_what_was_never_written_is_refused(text: str) -> None:
    with pytest.raises(DamagedError):
        stored_spec(text, "a")
