"""Control groups that systemd makes: a transient scope for each machine (systemd.scope(5)).

Where systemd runs, it owns the hierarchy, and others make no groups outside of a delegated one
(systemd.io/CGROUP_DELEGATION). A scope begins with a process and ends with its last: a small shell
is in it until the machine's first process has entered. If the command is killed meanwhile, the
shell ends, and the scope with it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

from cerne.errors import HostError
from cerne.host.cgroup import HOST, Surface
from cerne.host.limits import Limits
from cerne.host.programs import find_program, require_program

WORDS = "systemd"
"""Its name for people."""

_TIMEOUT = 30.0
_SLICE = "machine.slice"
_WAITING = "echo; read -r end"
_MANAGER = (
    "org.freedesktop.systemd1",
    "/org/freedesktop/systemd1",
    "org.freedesktop.systemd1.Manager",
)


class Scopes:
    """The scopes of the system's systemd for root, and of the user's own for others."""

    def __init__(self, surface: Surface = HOST) -> None:
        self._surface = surface
        self._user = () if os.geteuid() == 0 else ("--user",)

    @staticmethod
    def exist(surface: Surface = HOST) -> bool:
        """Whether systemd runs, with version 2 of control groups."""
        unified = (surface.groups / "cgroup.controllers").exists()
        return unified and surface.systemd.is_dir() and find_program("systemd-run") is not None

    def controllers(self) -> frozenset[str]:
        """The controllers that a scope has."""
        own = self._surface.groups
        if self._user:
            user = os.geteuid()
            own = own / f"user.slice/user-{user}.slice/user@{user}.service"
        try:
            return frozenset((own / "cgroup.controllers").read_text().split())
        except OSError:
            return frozenset()

    def name(self, machine_id: str) -> str:
        """A name for a scope; one that ends still has its own."""
        return f"cerne-{machine_id}-{uuid.uuid4().hex[:6]}.scope"

    def attaching(self, unit: str) -> tuple[str, ...]:
        """The command that moves a process into a scope; empty for root, who writes the files.

        A user may not move a process out of a session: systemd does it (org.freedesktop.systemd1).
        """
        if not self._user:
            return ()
        runtime = os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.geteuid()}")
        call = (str(require_program("busctl")), "--user", "call", *_MANAGER)
        variable = f"XDG_RUNTIME_DIR={runtime}"
        return ("env", variable, *call, "AttachProcessesToUnit", "ssau", unit, "", "1")

    @contextlib.contextmanager
    def made(self, unit: str, limits: Limits) -> Iterator[Path]:
        """Make a scope, and keep it until a process has entered; yield its group.

        Raises:
            HostError: systemd refuses it.
        """
        command = [
            *(str(require_program("systemd-run")), *self._user, "--scope", "--quiet", "--collect"),
            *(f"--unit={unit}", f"--slice={_SLICE}", "--property=Delegate=yes"),
            *(f"--property={each}" for each in limits.properties() if not each.endswith("=")),
            *("--", "/bin/sh", "-c", _WAITING),
        ]
        shell = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        with shell:
            assert shell.stdout is not None
            assert shell.stderr is not None
            if shell.stdout.readline() != b"\n":
                said = shell.stderr.read().decode(errors="replace").strip()
                raise HostError(f"systemd refuses a scope: {said}", hint="see: systemctl status")
            yield self._group_of(shell.pid)
            # Leaving ends the shell, whose standard input is closed.

    def give(self, unit: str, limits: Limits) -> None:
        """Give a scope other limits.

        Raises:
            HostError: systemd refuses them.
        """
        self._systemctl("set-property", "--runtime", unit, *limits.properties())

    def kill(self, unit: str) -> None:
        """Kill all processes in a scope."""
        with contextlib.suppress(HostError):
            self._systemctl("kill", "--signal=KILL", unit)

    def _systemctl(self, *words: str) -> None:
        command = [str(require_program("systemctl")), *self._user, *words]
        try:
            done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT, check=False)
        except subprocess.TimeoutExpired as error:
            raise HostError("systemd does not answer", hint="see: systemctl status") from error
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip()
            raise HostError(f"systemd refuses it: {said}", hint="see: systemctl status")

    def _group_of(self, pid: int) -> Path:
        for line in (self._surface.processes / str(pid) / "cgroup").read_text().splitlines():
            if line.startswith("0::/"):
                return self._surface.groups / line.removeprefix("0::/")
        raise HostError("systemd made no control group", hint="see: systemctl status")
