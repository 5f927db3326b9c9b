"""The specification of a machine, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from cerne.errors import CerneError, DamagedError, InputError
from cerne.spec.machine import MachineSpec, machine_spec, stored_spec
from cerne.spec.ports import PublishedPort
from cerne.units import GIB, MIB


def test_what_people_write_is_kept_as_numbers(tmp_path: Path) -> None:
    spec = machine_spec(
        name="web",
        image="debian:12",
        memory="1.5G",
        disk="4GiB",
        ports=["8080:80"],
        mounts=[f"{tmp_path}:/srv:ro"],
    )
    assert spec.memory == 1536 * MIB
    assert spec.disk == 4 * GIB
    assert spec.ports == (PublishedPort("127.0.0.1", 8080, 80),)
    assert (spec.mounts[0].source, spec.mounts[0].target) == (tmp_path, "/srv")
    assert spec.mounts[0].read_only


def test_a_stored_specification_is_the_same_again(tmp_path: Path) -> None:
    spec = machine_spec(name="a", ports=["1:2/udp"], mounts=[f"{tmp_path}:/x"], labels={"k": "v"})
    assert stored_spec(spec.model_dump_json(), "web") == spec


def test_a_specification_does_not_change() -> None:
    spec = machine_spec(name="a")
    with pytest.raises(ValidationError):
        spec.cpus = 2


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"cpus": 0}, "0 CPUs"),
        ({"cpus": 10_000}, "10000 CPUs"),
        ({"memory": "1K"}, "memory of 1K"),
        ({"memory": "12 bananas"}, "'12 bananas' is not a size"),
        ({"memory": 64 * MIB + 1}, "memory of"),
        ({"disk": "0"}, "a disk of 0"),
        ({"memory": "64M", "balloon": "65M"}, "a guest's memory of 65M"),
        ({"memory": "64M", "balloon": "1M"}, "a guest's memory of 1M"),
        ({"memory": "64M", "balloon": 33 * MIB + 4096}, "a balloon that leaves"),
        ({"cpu_weight": 0}, "0 is no CPU weight"),
        ({"cpu_weight": 10_001}, "10001 is no CPU weight"),
        ({"ports": ["80:0"]}, "0 is not a port"),
        ({"ports": [8080]}, "does not say which port of the guest"),
        ({"ports": ["[::1]:8080:80"]}, "IPv4 addresses alone"),
        ({"ports": [PublishedPort("::1", 8080, 80)]}, "IPv4 addresses alone"),
        ({"ports": ["80:70000"]}, "70000 is not a port"),
        ({"ports": [{"host_address": "127.0.0.1", "host_port": 1, "guest_port": 0}]}, "0"),
        ({"ports": ["81:80", "81:81"]}, "port is asked for twice"),
        ({"data_disks": ["a:format=vmdk"]}, "'vmdk' is not a format"),
        ({"mounts": ["/tmp:x"]}, "is not a mount"),
        ({"mounts": ["/tmp:/x:rx"]}, "is not a mount"),
        ({"mounts": ["/tmp"]}, "is not a mount"),
        ({"mounts": ["/tmp:/x", "/var:/x"]}, "target is asked for twice"),
        ({"network": "bridge:br0"}, "'bridge:br0' is not a network"),
        ({"network": "tap:tap0", "ports": ["81:80"]}, "publishes no ports"),
        ({"network": "none", "ports": ["81:80"]}, "publishes no ports"),
        ({"name": "a/b"}, "cannot be a machine's name"),
        ({"engine": "bochs"}, "engine"),
        ({"colour": "red"}, "colour"),
        ({"version": 2}, "version"),
    ],
)
def test_what_cannot_be_is_refused_in_words(fields: dict[str, object], said: str) -> None:
    with pytest.raises(InputError) as caught:
        machine_spec(**{"name": "a", **fields})
    assert said in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": 9, "name": "a"}', "{"])
def test_a_stored_specification_of_another_version_is_refused(text: str) -> None:
    with pytest.raises(DamagedError):
        stored_spec(text, "web")


def test_errors_of_the_specification_are_of_the_family() -> None:
    with pytest.raises(CerneError):
        machine_spec()


def test_the_schema_can_be_published() -> None:
    schema = MachineSpec.model_json_schema()
    assert {"name", "image", "cpus", "memory", "ports", "mounts"} <= set(schema["properties"])


@pytest.mark.parametrize(("mode", "read_only"), [("", False), (":ro", True), (":rw", False)])
def test_the_path_of_a_mounted_directory_may_have_colons(
    tmp_path: Path, mode: str, read_only: bool
) -> None:
    source = tmp_path / "co:lon:ro"
    source.mkdir()
    (mount,) = machine_spec(name="a", mounts=[f"{source}:/mnt/x{mode}"]).mounts
    assert (mount.source, mount.target, mount.read_only) == (source, "/mnt/x", read_only)


def test_what_a_specification_names_on_a_host_is_not_looked_at() -> None:
    spec = machine_spec(
        name="a", mounts=["~/none:/x", "/etc/hostname:/y"], data_disks=["none.raw:ro", "1G"]
    )
    assert [str(mount.source) for mount in spec.mounts] == ["~/none", "/etc/hostname"]
    assert [(str(disk.path), disk.format) for disk in spec.data_disks] == [
        ("none.raw", None),
        ("None", None),
    ]
    with pytest.raises(DamagedError, match=r"the format of the disk none.raw is not known"):
        _ = spec.data_disks[0].read_as
    assert spec.data_disks[1].read_as == "qcow2"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"nosuch": 1}, "a machine has no nosuch"),
        ({"cpus": "x"}, "cpus is to be an integer, not 'x'"),
        ({"engine": "bochs"}, "engine is to be 'auto', 'native' or 'qemu', not 'bochs'"),
        ({"ports": 8080}, "ports is to be a tuple, not 8080"),
    ],
)
def test_fields_that_make_no_sense_are_told_in_our_words(
    fields: dict[str, object], said: str
) -> None:
    with pytest.raises(InputError) as caught:
        machine_spec(**({"name": "a", "image": "tiny"} | fields))
    assert caught.value.message == said
