"""Runs one target by atheris: ``python -m tests.fuzz.run TARGET [SECONDS]``, as `make fuzz` does.

New inputs go to a directory of their own; what a target fell over is written to where it is run, as
libFuzzer does. Keep a small one in `corpus/TARGET`, and it is a test from then on.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["cerne"]):
    from tests.fuzz.targets import TARGETS

_CORPUS = Path(__file__).parent / "corpus"
_LONGEST = 8192


def main() -> None:
    """Fuzz the target that is named, for so many seconds."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: python -m tests.fuzz.run {{{','.join(TARGETS)}}} [SECONDS]")
    name, seconds = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "60"
    logging.disable()
    found = tempfile.mkdtemp(prefix=f"fuzz-{name}-")
    options = (f"-max_total_time={seconds}", f"-max_len={_LONGEST}", "-timeout=20")
    atheris.Setup([sys.argv[0], *options, found, str(_CORPUS / name)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
