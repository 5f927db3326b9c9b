"""Our small guests, built once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.guests.build import SOURCES, build

from cerne.host.probe import measure_guest_speed
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


@pytest.fixture(scope="session")
def emulated(kvm_device: Path) -> bool:
    """Whether this host's kernel emulates guests' kernel code."""
    return not measure_guest_speed(kvm_device).ring0_native
