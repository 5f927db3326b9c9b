"""The cells of machines in tests: what a test leaves, and what this host does not have."""

from pathlib import Path

import pytest

from cerne.errors import HostError
from cerne.host.cell import Cell, require_limits
from cerne.host.cell_note import NOTE
from cerne.spec.resources import CpuResources, Resources


def end_cells(directory: Path) -> None:
    """End all cells of the machines in a home that a test removes without ending them."""
    for note in directory.glob(f"**/{NOTE}"):
        if note.is_file():
            Cell(note).end()


def skip_without_limits() -> None:
    """Skip a test where this host does not let this user limit machines."""
    try:
        require_limits(Resources(cpu=CpuResources(weight=300)))
    except HostError as error:
        pytest.skip(error.message)
