"""The processes that a holder starts: each is started again when it ends.

Each registers itself in the network's directory (`cerne.host.members`), so that a command finds it
if the holder is killed, and ends when the holder does (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from cerne.errors import HostError
from cerne.host.members import Members
from cerne.host.programs import require_program
from cerne.network.holder.namespace import Inside

_FIRST_WAIT, _LONGEST_WAIT = 0.1, 10.0
_KEPT_LINES = 20
_LONGEST_LINE = 500


class Child:
    """One process of the network."""

    def __init__(
        self,
        role: str,
        members: Members,
        command: Callable[[], Sequence[str]],
        *,
        inside: Inside | None = None,
        descriptors: Sequence[int] = (),
        directory: Path,
    ) -> None:
        self._role = role
        self._members = members
        self._command = command
        self._inside = inside
        self._descriptors = descriptors
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._wanted = False
        self._wait = _FIRST_WAIT
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)

    @property
    def pid(self) -> int | None:
        """Its pid, while it runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    @property
    def said(self) -> str:
        """The last lines that it wrote."""
        return " ".join(self._lines)

    def start(self) -> None:
        """Start it, and again if it ends.

        Raises:
            HostError: the start failed.
        """
        self._wanted = True
        command = [str(require_program("setpriv")), "--pdeathsig", "KILL", "--", *self._command()]
        reading, writing = os.pipe()
        try:
            if self._inside is None:
                self._process = self._started(command, writing)
            else:
                self._process = self._inside.call(self._started, command, writing)
        except OSError as error:
            os.close(reading)
            raise HostError(f"starting {self._role} failed: {error.strerror}") from error
        finally:
            os.close(writing)
        self._watch(reading)

    def signal(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def stop(self) -> None:
        """End it for good."""
        self._wanted = False
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def restart(self) -> None:
        """End it, and start it again at once."""
        self.stop()
        self.start()

    def _started(self, command: Sequence[str], output: int) -> subprocess.Popen[bytes]:
        with self._members.command(self._role, command) as (registering, registration):
            return subprocess.Popen(
                registering,
                stdin=registration,
                stdout=output,
                stderr=output,
                pass_fds=self._descriptors,
                cwd=self._directory,
                env={"LC_ALL": "C", "PATH": os.environ.get("PATH", os.defpath)},
            )

    def _watch(self, output: int) -> None:
        loop = asyncio.get_running_loop()
        process = self._process
        os.set_blocking(output, False)

        def read() -> None:
            data = b""
            with contextlib.suppress(BlockingIOError):
                data = os.read(output, 65536)
                if data:
                    lines = data.decode(errors="replace").splitlines()
                    self._lines.extend(line[:_LONGEST_LINE] for line in lines if line.strip())
                    return
                loop.remove_reader(output)
                os.close(output)
                self._ended(process)

        loop.add_reader(output, read)

    def _ended(self, process: subprocess.Popen[bytes] | None) -> None:
        """It has closed its output: start it again, unless that was done or it was stopped."""
        loop = asyncio.get_running_loop()
        if process is None or process is not self._process or not self._wanted:
            return
        if process.poll() is None:
            loop.call_later(_FIRST_WAIT, self._ended, process)
            return
        loop.call_later(self._wait, self._again, process)
        self._wait = min(self._wait * 2, _LONGEST_WAIT)

    def _again(self, process: subprocess.Popen[bytes]) -> None:
        if self._wanted and self._process is process:
            try:
                self.start()
            except HostError as error:
                self._lines.append(error.message)
                self._ended(process)
