"""Starts the process of a machine or a nursery: run by its path, ``python -I -S start.py``.

    start.py machine CONFIG        what `cerne.vmm.__main__` does
    start.py nursery SOCKET NAME   what `cerne.vmm.nursery` does

A VMM needs the standard library and this package alone. Looking for what else is installed here
(-S leaves that out), and looking for garbage among the modules that it loads, would be a seventh of
a start.
"""

from __future__ import annotations

import gc
import sys


def main() -> int:
    """Load what is to run, and run it."""
    gc.disable()
    sys.path.append(__file__.rpartition("/cerne/")[0])
    if sys.argv.pop(1) == "machine":
        from cerne.vmm.__main__ import main as run
    else:
        from cerne.vmm.nursery import main as run
    # Nothing that is loaded is garbage, and what the collector touches a fork copies for nothing.
    gc.freeze()
    gc.enable()
    return run()


if __name__ == "__main__":
    sys.exit(main())
