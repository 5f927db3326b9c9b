"""Directories of the host that are mounted in the guest, as ``SOURCE:TARGET[:ro|:rw]``."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import field_validator

from cerne.errors import InputError
from cerne.spec.part import Part


class Mount(Part):
    """A directory of the host, and its path in the guest."""

    source: Path
    target: str
    read_only: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a mount from ``SOURCE:TARGET[:ro|:rw]``.

        Raises:
            InputError: the notation is wrong, or the guest's path is not absolute.
        """
        # Split from the end, because a path of the host may contain colons.
        paths, separator, mode = text.rpartition(":")
        if not separator or mode not in ("ro", "rw"):
            paths, mode = text, "rw"
        source, _, target = paths.rpartition(":")
        if not source or not target.startswith("/"):
            raise InputError(
                f"{text!r} is not a mount",
                hint="write it as SOURCE:TARGET or SOURCE:TARGET:ro; TARGET is an absolute path"
                " without a colon",
            )
        return cls(source=Path(source), target=target, read_only=mode == "ro")

    @field_validator("target")
    @classmethod
    def _target_is_a_place(cls, target: str) -> str:
        if not target.startswith("/") or "\0" in target:
            raise InputError(
                f"{target!r} is not a path for a mount in the guest", hint="give an absolute path"
            )
        return target
