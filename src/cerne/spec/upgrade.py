"""Reading a specification that an older Cerne wrote: into the store, a manifest or an archive.

Each version has one function here, which makes of a specification of that version one of the next.
It takes and gives plain JSON objects, looks at no model (models change, old versions do not), and
is tested with what the code of its time wrote (``tests/spec/fixtures``).

A new field raises no version where its default says what machines without it always were:
`resources`, `isolation`, `restart` and `health` come so. Whatever else changes raises `version` of
`MachineSpec` by one, with a function here. An older Cerne refuses both: it knows no such field.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

from pydantic import BeforeValidator, TypeAdapter, ValidationError

from cerne.errors import DamagedError, InputError
from cerne.spec.machine import MachineSpec

Fields = dict[str, object]


def upgraded(stored: object) -> object:
    """The fields of a specification of any version that there was, as the newest has them.

    Raises:
        InputError: they are not those of the version that they say they are.
    """
    if not isinstance(stored, dict):
        return stored
    fields: Fields = stored
    for version, upgrade in _UPGRADES.items():
        if fields.get("version") == version:
            fields = upgrade(fields)
    return fields


StoredSpec = Annotated[MachineSpec, BeforeValidator(upgraded)]
"""A specification in what was written by this Cerne or an older one."""

_STORED: TypeAdapter[MachineSpec] = TypeAdapter(StoredSpec)


def stored_spec(text: str, whose: str) -> MachineSpec:
    """The specification that the store holds as JSON, of a machine or a pool.

    Raises:
        DamagedError: it is of no version that is known.
    """
    try:
        return _STORED.validate_json(text)
    except (ValidationError, InputError) as error:
        raise DamagedError(
            f"the stored specification of {whose} cannot be read",
            hint="if another version of Cerne wrote it, use that one; else remove it",
        ) from error


def _from_1(old: Fields) -> Fields:
    """All disks in one list, the root disk among them, and all network cards, with their ports."""
    new = dict(old)
    size, network = new.pop("disk", None), new.pop("network", "user")
    disks: list[object] = [] if size is None else [{"serial": "root", "size": size}]
    disks += [_disk_from_1(disk) for disk in _list(new, "data_disks")]
    ports = _list(new, "ports")
    nics: list[object] = []
    if network != "none" or ports:
        nics.append({"network": network, "ports": ports})
    nics += _list(new, "extra_nics")
    return new | {"version": 2, "disks": disks, "nics": nics}


def _disk_from_1(disk: object) -> object:
    """Disks of a machine's own had the format that they have always had."""
    if not isinstance(disk, dict) or disk.get("path") is not None:
        return disk
    return {name: value for name, value in disk.items() if name != "format"}


def _list(fields: Fields, name: str) -> list[object]:
    """A list that is taken out of the fields; empty where it is not there."""
    found = fields.pop(name, [])
    if not isinstance(found, list):
        raise InputError(f"{name} is no list")
    return found


_UPGRADES: Mapping[int, Callable[[Fields], Fields]] = {1: _from_1}
