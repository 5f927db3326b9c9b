"""The user ids that a user without root may use in a user namespace (subuid(5))."""

from __future__ import annotations

import contextlib
import os
import pwd
from pathlib import Path

from cerne.errors import HostError, MissingProgramError
from cerne.host.programs import find_program, install_command

_FILES = (Path("/etc/subuid"), Path("/etc/subgid"))
_PROGRAMS = ("newuidmap", "newgidmap")


def has_own_ids() -> bool:
    """Whether this user has such ids."""
    return _missing_program() is None and _missing_file() is None


def as_root() -> list[str]:
    """The words before a command that make it root: none for root, else a user namespace."""
    return [] if os.geteuid() == 0 else ["unshare", "--map-auto", "--map-root-user"]


def require_own_ids(what: str) -> None:
    """Refuse `what`, which needs such ids, if this user has none and is not root.

    Raises:
        MissingProgramError: a program that sets them up is not installed.
        HostError: this user has none.
    """
    if os.geteuid() == 0:
        return
    program = _missing_program()
    if program is not None:
        raise MissingProgramError(
            f"making {what} without root needs {program}, which is not installed",
            hint=install_command(program),
        )
    file = _missing_file()
    if file is not None:
        raise HostError(
            f"making {what} without root needs ids of your own: {_name()} has no line in {file}",
            hint=f"sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {_name()}",
        )


def _missing_program() -> str | None:
    return next((name for name in _PROGRAMS if find_program(name) is None), None)


def _missing_file() -> Path | None:
    return next((file for file in _FILES if not _names_this_user(file)), None)


def _names_this_user(file: Path) -> bool:
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return False
    return any(line.split(":")[0] in (str(os.geteuid()), _name()) for line in lines)


def _name() -> str:
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(os.geteuid()).pw_name
    return str(os.geteuid())
