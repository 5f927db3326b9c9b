"""Our small guests, built once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.guests.build import SOURCES, build

from cerne.host.programs import find_program

Built = Callable[[str], Path]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The kernel of a guest, by its name."""
    if find_program("gcc") is None:
        pytest.skip("gcc is not installed: scripts/install-system-packages")
    directory = tmp_path_factory.mktemp("guests")

    def kernel(name: str) -> Path:
        output = directory / name
        return output if output.exists() else build(SOURCES[name], output)

    return kernel
