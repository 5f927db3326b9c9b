"""Starts a supervisor: ``python -I -S supervise.py process TASK`` or ``… card TASK CARD``.

Python compiles a program anew at each start, and only what it imports just once: so this is short.
"""

from __future__ import annotations

import gc
import sys


def main() -> int:
    """Import the module to run, and run it."""
    gc.disable()
    sys.path.append(__file__.rpartition("/cerne/")[0])
    what, *words = sys.argv[1:]
    if what == "card":
        from cerne.engine.card_supervisor import main as run
    else:
        from cerne.engine.supervisor import main as run
    gc.enable()
    return run(words)


if __name__ == "__main__":
    sys.exit(main())
