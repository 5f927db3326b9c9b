"""Building the agent, and the unit tests that are written in C."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.waiting import PATIENCE

import cerne.guest.build as build
from cerne.errors import HostError, MissingProgramError
from cerne.guest.build import agent_binary
from cerne.host.programs import find_program

_SOURCE = Path(build.__file__).parent / "agent"
_WARNINGS = ("-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-fsyntax-only")
_SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def test_the_agent_is_small_and_static(agent_program: Path) -> None:
    if find_program("musl-gcc") is None:
        pytest.skip("without musl-gcc the agent is not small")
    assert agent_program.stat().st_size < 108_000
    assert os.access(agent_program, os.X_OK)
    version = subprocess.run([agent_program, "--version"], capture_output=True, check=True)
    assert version.stdout.startswith(b"cerne-agent ")


def test_it_is_built_once(agent_program: Path) -> None:
    before = agent_program.stat()
    assert agent_binary(agent_program.parent) == agent_program
    assert agent_program.stat().st_ino == before.st_ino


@pytest.mark.slow
@pytest.mark.usefixtures("agent_program")
def test_builds_at_once_leave_one_program(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        built = list(pool.map(agent_binary, [tmp_path / "cache"] * 2))
    assert built[0] == built[1]
    assert list((tmp_path / "cache").iterdir()) == [built[0]]


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "find_program", lambda name: None)
    with pytest.raises(MissingProgramError, match="needs a C compiler") as caught:
        agent_binary(tmp_path / "cache")
    assert "install" in caught.value.hint
    assert not (tmp_path / "cache").exists()


def test_a_compiler_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho no space >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(build, "find_program", lambda name: compiler)
    with pytest.raises(HostError, match="no space"):
        agent_binary(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_source_gives_no_warnings(tmp_path: Path) -> None:
    compiler = find_program("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed")
    command: list[str | Path] = [
        compiler,
        "-std=gnu11",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fsyntax-only",
    ]
    subprocess.run([*command, *sorted(_SOURCE.glob("*.c"))], check=True, cwd=tmp_path)


def test_the_units_written_in_c(tmp_path: Path) -> None:
    compiler = find_program("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed")
    program = tmp_path / "agent_test"
    sources = [Path(__file__).parent / "agent_test.c"]
    sources += [_SOURCE / name for name in ("wire.c", "user.c", "clock.c")]
    command: list[str | Path] = [compiler, "-std=gnu11", "-g", *_SANITIZERS, f"-I{_SOURCE}"]
    subprocess.run([*command, *sources, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.stdout == "ok\n", done.stderr
