"""What is in a snapshot, as JSON with a version: in the store, and first in an exported file."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cerne.errors import DamagedError
from cerne.manager.spec import MachineSpec


class Manifest(BaseModel):
    """A snapshot, as told to those who restore it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    machine: str
    """The ID of the machine that it is of."""
    spec: MachineSpec
    """What that machine was asked to be."""
    image: str
    digest: str
    """The image's."""
    engine: str
    """The engine that saved its memory; empty where it has none."""
    fingerprint: str
    """What the engine must be able to restore (`Engine.fingerprint`)."""

    data_layers: dict[str, str] = Field(default_factory=dict)
    """The layers that its own disks beside the root disk are, by their serials."""

    @property
    def has_memory(self) -> bool:
        """Whether a machine goes on from it; otherwise it boots."""
        return bool(self.engine)


def read_manifest(text: str | bytes, origin: str) -> Manifest:
    """The manifest in some JSON.

    Raises:
        DamagedError: it is none, or one of another version.
    """
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DamagedError(
            f"{origin} cannot be read: {where}: {first['msg'].lower()}",
            hint="it is damaged, or was written by another version of Cerne",
        ) from error
