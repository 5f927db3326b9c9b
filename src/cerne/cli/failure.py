"""How a command fails: one line that says what happened, one that mends it, and an exit status.

Commands that pass a guest's exit status through (``run``, ``exec``, ``shell``) use 125 for
failures of Cerne itself, as podman does, so that the two cannot be mistaken for each other.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from cerne.cli.output import paint, printable
from cerne.errors import CerneError, InterruptedByUserError, exit_status

OWN_FAILURE = 125
"""The exit status of ``run``, ``exec`` and ``shell`` where Cerne failed and not the guest."""

INTERRUPTED = 130
"""The exit status after Ctrl-C, as shells have it: 128 and SIGINT."""


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Report a failure on stderr and exit with its status.

    Raises:
        SystemExit: the block failed; the status is that of `cerne.errors.exit_status`.
    """
    try:
        yield
    except CerneError as error:
        report(error)
        raise SystemExit(exit_status(error)) from error
    except KeyboardInterrupt as interrupt:
        raise SystemExit(INTERRUPTED) from interrupt
    except BrokenPipeError as error:
        _close_stdout()
        raise SystemExit(1) from error
    except OSError as error:
        report(CerneError(str(error)))
        raise SystemExit(1) from error


@contextlib.contextmanager
def own_failures_are_125() -> Iterator[None]:
    """Report a failure as `reported` does, and exit with 125 (130 after Ctrl-C)."""
    try:
        yield
    except InterruptedByUserError:
        raise
    except CerneError as error:
        report(error)
        raise SystemExit(OWN_FAILURE) from error


def report(error: CerneError) -> None:
    """Print an error on stderr: its message, then the remedy on a line of its own."""
    print(f"{paint('cerne:', 'red', sys.stderr)} {printable(error.message)}", file=sys.stderr)
    for line in error.hint.splitlines():
        print(f"  {printable(line)}", file=sys.stderr)


def _close_stdout() -> None:
    # The interpreter flushes stdout once more at exit, and would complain about the pipe again.
    with contextlib.suppress(OSError):
        sys.stdout.close()
