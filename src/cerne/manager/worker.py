"""``python -m cerne.manager.worker``: work that no command waits for, in a process of its own.

It is given the directories of its manager's home, the kind of work, and what that is of. What goes
wrong is said on its standard error, which is a log (`cerne.manager.background`).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cerne.errors import CerneError, NotFoundError
from cerne.manager.home import Home
from cerne.manager.manager import Manager
from cerne.spec.upgrade import stored_spec


def _fill(manager: Manager, pool: str) -> None:
    manager.pool(pool).fill()


def _warm(manager: Manager, spec: str) -> None:
    manager.warm(stored_spec(spec, "a template"))


def _remove(manager: Manager, machine_id: str) -> None:
    with contextlib.suppress(NotFoundError):
        manager.get(machine_id).remove(force=True)


_WORK: dict[str, Callable[[Manager, str], None]] = {
    "fill": _fill,
    "warm": _warm,
    "remove": _remove,
}


def main(arguments: Sequence[str]) -> int:
    """Do the work; the exit status."""
    data, runtime, cache, kind, subject = arguments
    try:
        with Manager(Home(Path(data), Path(runtime), Path(cache))) as manager:
            _WORK[kind](manager, subject)
    except CerneError as error:
        print(error.message, error.hint, sep="\n", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
