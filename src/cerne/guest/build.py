"""Builds the guest agent: one static program, cached by the digest of its source and compiler.

musl-gcc makes a small program; without it, gcc links the C library's static archive.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

from cerne.errors import HostError, MissingProgramError
from cerne.host.programs import find_program, install_command

_SOURCE = Path(__file__).parent / "agent"
_FLAGS = (
    "-static",
    "-Os",
    "-std=gnu11",
    "-Wall",
    "-Wextra",
    "-ffunction-sections",
    "-fdata-sections",
)
_LINK_FLAGS = ("-s", "-Wl,--gc-sections", "-Wl,--build-id=none")
_COMPILE_TIMEOUT = 120


def agent_binary(cache: Path) -> Path:
    """The path of the agent in `cache`; it is compiled first if it is missing.

    Simultaneous builds are safe: each writes a separate file and renames it into place.

    Raises:
        MissingProgramError: there is no C compiler.
        HostError: the compiler failed; the message has the beginning of its output.
    """
    compiler = _compiler()
    target = cache / f"cerne-agent-{_digest(compiler)}"
    if target.exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".agent-", dir=cache) as scratch:
        built = Path(scratch) / "cerne-agent"
        _compile(compiler, built)
        _sync(built)
        built.rename(target)
    return target


def _compiler() -> Path:
    found = find_program("musl-gcc") or find_program("gcc")
    if found is None:
        raise MissingProgramError(
            "building the guest agent needs a C compiler, and none is installed",
            hint=install_command("musl-gcc", "gcc"),
        )
    return found


def _sources(suffix: str) -> list[Path]:
    return sorted(_SOURCE.glob(f"*{suffix}"))


def _digest(compiler: Path) -> str:
    digest = hashlib.sha256()
    version = subprocess.run(
        [compiler, "-v"], capture_output=True, check=False, timeout=_COMPILE_TIMEOUT
    ).stderr
    parts = [str(compiler).encode(), version, " ".join((*_FLAGS, *_LINK_FLAGS)).encode()]
    for file in _sources(".[ch]"):
        parts += [file.name.encode(), file.read_bytes()]
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]


def _compile(compiler: Path, target: Path) -> None:
    command: list[str | Path] = [compiler, *_FLAGS, *_sources(".c"), *_LINK_FLAGS, "-o", target]
    done = subprocess.run(
        command, capture_output=True, check=False, text=True, timeout=_COMPILE_TIMEOUT
    )
    if done.returncode != 0:
        raise HostError(
            f"{compiler.name} failed to build the guest agent: {done.stderr.strip()[:500]}",
            hint=install_command("musl-gcc"),
        )


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
