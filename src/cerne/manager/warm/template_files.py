"""What a template is on the disk: a directory that an engine saved a machine in, and a note."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cerne.errors import DamagedError
from cerne.images.files import sync_directory
from cerne.manager.home import Home

_NOTE = "template.json"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Template:
    """A template that is complete."""

    directory: Path
    """What the engine saved."""
    image: str
    """The digest of the image that was booted."""
    family: str
    """The same for templates of which one replaces the other."""
    layer: str
    """The ID of its disk's layer; empty where its image has no disk."""


def templates_of(home: Home) -> Iterator[Template]:
    """All templates that are complete."""
    for directory in sorted(home.templates.glob("[!.]*/")):
        try:
            yield read_template(directory)
        except DamagedError as error:
            _log.debug("%s", error.message)


def write_template(template: Template, directory: Path) -> None:
    """Note which template a directory holds."""
    note = {"image": template.image, "family": template.family, "layer": template.layer}
    path = directory / _NOTE
    with path.open("w") as file:
        json.dump(note, file)
        file.flush()
        os.fsync(file.fileno())
    sync_directory(directory)


def read_template(directory: Path) -> Template:
    """The template that a directory holds.

    Raises:
        DamagedError: it holds none that is complete.
    """
    path = directory / _NOTE
    try:
        note = json.loads(path.read_text())
        return Template(directory, str(note["image"]), str(note["family"]), str(note["layer"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{directory} is not a template: {error}") from error
