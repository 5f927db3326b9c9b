"""Reads specifications of older versions of Cerne: in the store, a manifest or an archive.

Each version has one function here, which converts a specification of that version to the next one.
It takes and returns plain JSON objects, uses no model (models change, old versions do not), and is
tested with files that the code of its time wrote (``tests/spec/fixtures``).

A new field needs no new version if its default describes machines without it: `isolation`,
`restart` and `health` will be such fields, and new values of `resources`. Every other change raises
`version` of `MachineSpec` by one, with a function here. An older Cerne refuses both, because it
does not know the field.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, TypeAdapter, ValidationError

from cerne import upgrades
from cerne.errors import DamagedError, InputError
from cerne.spec.machine import MachineSpec
from cerne.upgrades import Document as Fields
from cerne.upgrades import Upgrades


def upgraded(stored: object) -> object:
    """Convert the fields of a specification of any version to the newest version.

    Raises:
        InputError: they are not fields of their version.
    """
    if not isinstance(stored, dict):
        return stored
    version = stored.get("version")
    if type(version) is not int or version not in _UPGRADES:
        # The newest, or one that the model refuses with a place and in words.
        return stored
    return upgrades.upgraded(stored, version, max(_UPGRADES) + 1, _UPGRADES, "a specification")


StoredSpec = Annotated[MachineSpec, BeforeValidator(upgraded)]
"""Read a specification that this Cerne or an older one wrote."""

_STORED: TypeAdapter[MachineSpec] = TypeAdapter(StoredSpec)


def stored_spec(text: str, whose: str) -> MachineSpec:
    """Read the stored specification of a machine or a pool from JSON.

    Raises:
        DamagedError: its version is unknown, or it is damaged.
    """
    try:
        return _STORED.validate_json(text)
    except (ValidationError, InputError) as error:
        raise DamagedError(
            f"the stored specification of {whose} is not readable",
            hint="if another version of Cerne wrote it, use that one; else remove it",
        ) from error


def _from_1(old: Fields) -> Fields:
    """Put all disks, with the root disk, in one list, and all network cards with their ports."""
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
    """Disks that are made for the machine had a fixed format."""
    if not isinstance(disk, dict) or disk.get("path") is not None:
        return disk
    return {name: value for name, value in disk.items() if name != "format"}


def _list(fields: Fields, name: str) -> list[object]:
    """Remove a list from the fields; empty if it is missing."""
    found = fields.pop(name, [])
    if not isinstance(found, list):
        raise InputError(f"{name} is not a list")
    return found


def _from_2(old: Fields) -> Fields:
    """Put the CPU weight among the resources."""
    new = dict(old)
    weight = new.pop("cpu_weight", None)
    resources = {} if weight is None else {"cpu": {"weight": weight}}
    return new | {"version": 3, "resources": resources}


_UPGRADES: Upgrades = {1: _from_1, 2: _from_2}
