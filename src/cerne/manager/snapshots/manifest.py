"""What is in a snapshot, as JSON with a version: in the store, and first in an exported file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cerne.errors import DamagedError, InputError
from cerne.spec.limits import SERIAL
from cerne.spec.upgrade import StoredSpec

_LONGEST_NAME = 256
_LONGEST_FINGERPRINT = 65536
_Id = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]


class Manifest(BaseModel):
    """A snapshot, as told to those who restore it.

    Paths are made of its IDs, serials and digest: each is checked, wherever it comes from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    machine: str = Field(max_length=_LONGEST_NAME)
    """The ID of the machine that it is of; empty where that is no machine of this store."""
    spec: StoredSpec
    """What that machine was asked to be."""
    image: str = Field(max_length=_LONGEST_NAME)
    digest: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    """The image's."""
    engine: str = Field(pattern="^[a-z]{0,32}$")
    """The engine that saved its memory; empty where it has none."""
    fingerprint: str = Field(max_length=_LONGEST_FINGERPRINT)
    """What the engine must be able to restore (`Engine.fingerprint`)."""

    data_layers: dict[Annotated[str, Field(pattern=SERIAL)], _Id] = Field(default_factory=dict)
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
    except (ValidationError, InputError) as error:
        raise DamagedError(
            f"{origin} is not readable: {what_is_wrong(error)}",
            hint="it is damaged, or was written by another version of Cerne",
        ) from error


def what_is_wrong(error: ValidationError | InputError) -> str:
    """What a model that was read refuses, in a few words."""
    if isinstance(error, InputError):
        return error.message
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part)[:64] for part in first["loc"][:8])
    return f"{where}: {first['msg'].lower()}"
