"""Starts a machine, a fork server or a confined program: ``python -I -S start.py``.

    start.py machine CONFIG            what `cerne.vmm.__main__` does
    start.py fork-server SOCKET NAME   what `cerne.vmm.fork_server` does
    start.py program WORD… -- ARGUMENT…  what `cerne.vmm.jail.program` does

A VMM needs only the standard library and this package. The search for other installed packages (-S
turns it off) and garbage collection during the imports would take a seventh of the start.
"""

from __future__ import annotations

import gc
import sys


def main() -> int:
    """Import the module to run, and run it."""
    gc.disable()
    sys.path.append(__file__.rpartition("/cerne/")[0])
    what = sys.argv.pop(1)
    if what == "machine":
        from cerne.vmm.__main__ import main as run
    elif what == "program":
        from cerne.vmm.jail.program import main as run
    else:
        from cerne.vmm.fork_server import main as run
    # Imports make no garbage, and a fork would copy the pages that the collector writes.
    gc.freeze()
    gc.enable()
    return run()


if __name__ == "__main__":
    sys.exit(main())
