"""Waiting for a guest to be ready, and telling in words why it is not."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from cerne.errors import CerneError, EngineError, GuestPanicError

if TYPE_CHECKING:
    from cerne.host.process import ProcessIdentity

_PANIC = b"Kernel panic - not syncing"
_TAIL = 65536
_LINES_SHOWN = 5


class BootWatch:
    """Looks at a starting machine: has its process ended, has its kernel panicked?"""

    def __init__(self, name: str, process: ProcessIdentity, console_log: Path) -> None:
        self._name = name
        self._process = process
        self._console_log = console_log
        self._offset = 0

    def check(self) -> bool:
        """Whether the guest may still become ready; False once its process is gone.

        Raises:
            GuestPanicError: the kernel's last words are on the console.
        """
        self._raise_for_panic()
        return self._process.alive()

    def _raise_for_panic(self) -> None:
        try:
            with self._console_log.open("rb") as log:
                log.seek(max(0, self._offset - len(_PANIC)))
                text = log.read()
                self._offset = log.tell()
        except FileNotFoundError:
            return
        found = text.find(_PANIC)
        if found >= 0:
            words = text[found:].splitlines()[0].decode(errors="replace").strip()
            raise GuestPanicError(
                f"the kernel of {self._name} panicked: {words}",
                hint=f"its console log is {self._console_log}",
                machine=self._name,
            )


def ended_before_ready(name: str, reason: str, console_log: Path) -> EngineError:
    """The error that a machine ended while it was waited for."""
    return EngineError(
        f"{name} ended before it was ready: {reason}",
        hint=f"its console log is {console_log}",
        machine=name,
    )


def quote_logs(error: BaseException, logs: Iterable[Path]) -> None:
    """Have an error that says where logs are say how they end: they are about to be removed."""
    if not isinstance(error, CerneError):
        return
    for log in logs:
        named = re.compile(rf"its (?:console )?log is {re.escape(str(log))}(?:; )?")
        if not named.search(error.hint):
            continue
        lines = last_lines(log)
        said = [f"the last lines of {log.name}:", *lines] if lines else [f"{log.name} is empty"]
        rest = named.sub("", error.hint)
        error.hint = "\n".join([*([rest] if rest else []), *said])


def last_lines(console_log: Path) -> list[str]:
    """The last lines of a console log that say something."""
    try:
        with console_log.open("rb") as log:
            log.seek(max(0, log.seek(0, 2) - _TAIL))
            text = log.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line][-_LINES_SHOWN:]
