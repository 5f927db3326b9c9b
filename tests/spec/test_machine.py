"""The specification of a machine, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from cerne.errors import CerneError, DamagedError, InputError
from cerne.spec.disk import Disk
from cerne.spec.machine import MachineSpec, machine_spec
from cerne.spec.nic import Nic
from cerne.spec.ports import PublishedPort
from cerne.spec.upgrade import stored_spec
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
    assert spec.root_size == 4 * GIB
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
        ({"cpus": 0}, "cpus is 0"),
        ({"cpus": 10_000}, "cpus is 10000"),
        ({"memory": "1K"}, "memory is 1K"),
        ({"memory": "12 bananas"}, "'12 bananas' is not a size"),
        ({"memory": 64 * MIB + 1}, "memory is 67108865 bytes, which"),
        ({"disk": "0"}, "the size of a disk is 0"),
        ({"memory": "64M", "balloon": "65M"}, "balloon is 65M"),
        ({"memory": "64M", "balloon": "1M"}, "balloon is 1M"),
        ({"memory": "64M", "balloon": 33 * MIB + 4096}, "balloon is 34607104 bytes"),
        ({"cpu_weight": 0}, "0 is not a weight"),
        ({"cpu_weight": 10_001}, "10001 is not a weight"),
        ({"ports": ["80:0"]}, "0 is not a port"),
        ({"ports": [8080]}, "does not name a port of the guest"),
        ({"ports": ["[::1::]:8080:80"]}, "is not an address"),
        ({"ports": [PublishedPort("::z", 8080, 80)]}, "is not an address"),
        ({"ports": ["80:70000"]}, "70000 is not a port"),
        ({"ports": [{"host_address": "127.0.0.1", "host_port": 1, "guest_port": 0}]}, "0"),
        ({"ports": ["81:80", "81:81"]}, "port 127.0.0.1:81/tcp is given twice"),
        ({"data_disks": ["a:format=vmdk"]}, "'vmdk' is not a format"),
        ({"mounts": ["/tmp:x"]}, "is not a mount"),
        ({"mounts": ["/tmp:/x:rx"]}, "is not a mount"),
        ({"mounts": ["/tmp"]}, "is not a mount"),
        ({"mounts": ["/tmp:/x", "/var:/x"]}, "target /x is given twice"),
        ({"network": "bridge:br0"}, "'bridge:br0' is not a network"),
        ({"network": "tap:tap0", "ports": ["81:80"]}, "publishes no ports"),
        ({"network": "none", "ports": ["81:80"]}, "publishes no ports"),
        ({"name": "a/b"}, "is not valid as a machine's name"),
        ({"engine": "bochs"}, "engine"),
        ({"colour": "red"}, "colour"),
        ({"version": 1}, "version"),
        ({"disks": ["1G"], "disk": "1G"}, "disks and disk are given"),
        ({"disks": [Disk(serial="a", slot=0, size=MIB)] * 2}, "disk's serial a is given twice"),
        ({"disks": [{"serial": "a", "size": MIB}]}, "the disk a has no slot"),
        ({"disks": [{"serial": "a", "slot": 0}]}, "needs a size or a path"),
        ({"disks": [{"serial": "a", "slot": 0, "size": MIB, "path": "/a"}]}, "and not both"),
        ({"disks": [{"serial": "a", "slot": 0, "size": MIB + 1}]}, "the size of a disk is"),
        ({"disks": [{"serial": "a b", "slot": 0, "size": MIB}]}, "'a b' is not a serial"),
        ({"disks": [{"serial": "a", "slot": 0, "size": MIB, "format": "raw"}]}, "a format already"),
        ({"disks": [{"serial": "root", "path": "/a"}]}, "'root' is the serial of the root disk"),
        ({"disks": [{"serial": "root", "size": MIB, "slot": 0}]}, "has only a size"),
        ({"disks": [{"serial": "a", "slot": 8, "size": MIB}]}, "disks.0.slot"),
        ({"data_disks": ["1G"] * 9}, "all 8 slots of the machine"),
        ({"nics": [Nic(slot=0)], "data_disks": ["1G"]}, "slot 0 is given twice"),
        ({"nics": [Nic(), Nic()]}, "a network card without a slot is not the first"),
        ({"nics": [Nic(slot=0), Nic()]}, "a network card without a slot is not the first"),
        ({"nics": [{"network": "none"}]}, "is not a network for a card"),
        (
            {"nics": [{"slot": 0, "ports": ["81:80"]}]},
            "an attached network card publishes no ports",
        ),
        ({"nics": [Nic()], "network": "user"}, "nics and network are given"),
        ({"mounts": [{"source": "/a", "target": "x"}]}, "'x' is not a path for a mount"),
        ({"labels": {str(number): "" for number in range(257)}}, "257 labels are too many"),
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
    assert {"name", "image", "cpus", "memory", "disks", "nics", "mounts"} <= set(
        schema["properties"]
    )


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
    with pytest.raises(DamagedError, match=r"the format of the disk none.raw is unknown"):
        _ = spec.data_disks[0].read_as
    assert spec.data_disks[1].read_as == "qcow2"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"nosuch": 1}, "a machine has no field nosuch"),
        ({"cpus": "x"}, "cpus must be an integer, not 'x'"),
        ({"engine": "bochs"}, "engine must be 'auto', 'native' or 'qemu', not 'bochs'"),
        ({"ports": 8080}, "ports must be a list, not 8080"),
        ({"network": 1}, "network must be a text, not 1"),
        ({"disk": []}, "disk must be an integer, not []"),
        ({"data_disks": "1G"}, "data_disks must be a list, not '1G'"),
    ],
)
def test_fields_that_make_no_sense_are_told_in_our_words(
    fields: dict[str, object], said: str
) -> None:
    with pytest.raises(InputError) as caught:
        machine_spec(**({"name": "a", "image": "tiny"} | fields))
    assert caught.value.message == said


def test_what_people_say_of_disks_and_cards_is_one_list_of_each() -> None:
    spec = machine_spec(name="a", disk="2G", data_disks=["1G", "/x"], ports=["81:80"])
    assert [(disk.serial, disk.number) for disk in spec.disks] == [
        ("root", 0),
        ("data1", 1),
        ("data2", 2),
    ]
    assert spec.nics == (Nic(ports=(PublishedPort("127.0.0.1", 81, 80),)),)
    assert spec == machine_spec(name="a", disks=spec.disks, nics=spec.nics)
    assert machine_spec(name="a").nics == (Nic(),)
    assert machine_spec(name="a", network="none").nics == ()
    assert machine_spec(name="a", network="none").network == "none"


def test_a_machine_is_changed_field_by_field_or_by_its_first_card() -> None:
    spec = machine_spec(name="a", nics=[Nic(), Nic(slot=0)])
    assert spec.changed(cpus=3).cpus == 3
    assert spec.on_network("tap:tap0").nics == (Nic(network="tap:tap0"), Nic(slot=0))
    assert spec.on_network("user", ["81:80"]).ports == (PublishedPort("127.0.0.1", 81, 80),)
    assert spec.on_network("none").nics == (Nic(slot=0),)
    with pytest.raises(InputError, match="publishes no ports"):
        spec.on_network("tap:tap0", ["81:80"])


@pytest.mark.parametrize("fields", [{"cpus": 0}, {"cpus": "x"}, {"colour": "red"}])
def test_a_change_is_checked_like_the_whole(fields: dict[str, object]) -> None:
    with pytest.raises(InputError):
        machine_spec(name="a").changed(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "../x", "cpus": -3},
        {"name": "a", "disks": [{"serial": "../a", "slot": 0, "size": MIB}]},
        {"name": "a", "mounts": [{"source": "/", "target": "../x"}]},
        {"name": "a", "nics": [{"network": "tap:../x"}]},
    ],
)
def test_the_model_itself_refuses(fields: dict[str, object]) -> None:
    with pytest.raises(InputError):
        MachineSpec.model_validate(fields)


@pytest.mark.parametrize(
    ("fields", "message", "hint"),
    [
        ({}, "a machine needs a name", "give it one: name='web'"),
        (
            {"name": "a", "ports": "8080:80"},
            "ports must be a list, not '8080:80'",
            "write it as ['8080:80']",
        ),
        ({"name": "a", "mounts": "/a:/b"}, "mounts must be a list", "write it as ['/a:/b']"),
        ({"name": "a", "data_disks": "1G"}, "data_disks must be a list", "write it as ['1G']"),
        ({"name": "a", "mounts": [3]}, "mounts.0 must be a text or a Mount, not 3", "see: "),
        ({"name": "a", "network": 3}, "network must be a text, not 3", "see: "),
        ({"name": "a", "cpus": "two"}, "cpus must be an integer, not 'two'", "see: "),
    ],
)
def test_an_error_has_no_words_of_python_or_of_pydantic(
    fields: dict[str, object], message: str, hint: str
) -> None:
    with pytest.raises(InputError) as refused:
        machine_spec(**fields)
    assert refused.value.message.startswith(message)
    assert refused.value.hint.startswith(hint)
