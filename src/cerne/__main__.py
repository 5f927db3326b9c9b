"""``python -m cerne``: the command line, if the program ``cerne`` is not on the path."""

from __future__ import annotations

from cerne.cli import main

if __name__ == "__main__":
    main()
