"""The ``cerne`` command.

Every command imports what it needs when it runs, so that `cerne ls` does not load what only `cerne
image build` needs. The commands call the manager, the image store and the doctor, and decide
nothing.
"""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command line of this process and exit with the command's status."""
    import gc
    import sys

    # Imports make no garbage, and to look for it every 700 objects takes a twentieth of a start.
    gc.set_threshold(50_000)
    from cerne.cli.signals import end_at_once, end_in_order

    end_at_once()
    from cerne.cli.plugins import leave_out_plugins
    from cerne.cli.streams import prepare

    prepare()
    leave_out_plugins()
    from cerne.cli.app import app
    from cerne.cli.failure import reported

    end_in_order()
    with reported():
        try:
            app(prog_name="cerne")
        finally:
            sys.stdout.flush()
