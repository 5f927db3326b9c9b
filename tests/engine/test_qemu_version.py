"""QEMU's series, by which it is told what a saved machine can be restored by."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cerne.engine.qemu import QemuEngine, launching
from cerne.engine.qemu.accelerator import Accelerator
from cerne.engine.qemu.command_line import MACHINE_VERSION
from cerne.engine.qemu.version import installed_series, maps_read_files
from cerne.errors import HostError
from cerne.host.processor import processor_fingerprint


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that answers as QEMU does, and counts how often it is asked."""
    path = tmp_path / "qemu"
    _install(path, "7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)", 1)
    monkeypatch.setattr(launching, "require_program", lambda _name: path)
    return path


def _install(path: Path, version: str, time: int) -> None:
    asked = path.with_name("asked")
    path.write_text(f"#!/bin/sh\necho x >> {asked}\necho 'QEMU emulator version {version}'\n")
    path.chmod(0o755)
    os.utime(path, (time, time))


def _asked(program: Path) -> int:
    return program.with_name("asked").read_text().count("x")


def test_an_update_within_a_series_restores_what_was_saved(program: Path) -> None:
    engine = QemuEngine(Accelerator.TCG)
    saved = engine.fingerprint()
    assert "pc-q35-7.2" in saved
    _install(program, "7.2.23 (Debian 1:7.2+dfsg-7+deb12u19)", 2)
    assert engine.restores(saved)
    _install(program, "8.0.0", 3)
    assert not engine.restores(saved)
    assert not QemuEngine(Accelerator.KVM).restores(saved)


def test_a_fingerprint_of_the_first_kind_is_known_while_that_program_is_installed(
    program: Path,
) -> None:
    engine = QemuEngine(Accelerator.TCG)
    status = program.stat()
    whole = f"{status.st_size}:{status.st_mtime_ns}"
    vsock = " vsock" if "vsock" in engine.fingerprint() else ""
    first = f"qemu {MACHINE_VERSION} {whole}{vsock} tcg {processor_fingerprint()}"
    assert engine.restores(first)
    _install(program, "7.2.23", 2)
    assert not engine.restores(first)


def test_the_series_is_kept_for_the_program_that_printed_it(program: Path, tmp_path: Path) -> None:
    kept = tmp_path / "cache" / "version.json"
    assert installed_series(program, kept) == "7.2"
    program.chmod(0o644)
    assert installed_series(program, kept) == "7.2"
    assert _asked(program) == 1
    kept.write_text("[")
    _install(program, "10.0.1", 5)
    assert installed_series(program, kept) == "10.0"
    assert _asked(program) == 2


@pytest.mark.parametrize(
    ("series", "maps"), [("7.2", False), ("8.1", False), ("8.2", True), ("10.0", True)]
)
def test_newer_series_map_what_they_only_read(series: str, maps: bool) -> None:
    assert maps_read_files(series) == maps


@pytest.mark.parametrize("version", ["", "of mine"])
def test_a_program_without_a_version_is_named(program: Path, version: str) -> None:
    _install(program, version, 7)
    with pytest.raises(HostError, match="printed no version"):
        installed_series(program, None)
