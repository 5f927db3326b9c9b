"""``python -m cerne.vmm CONFIG``: the process of one machine, started by the engine `native`."""

from __future__ import annotations

import sys
from pathlib import Path

from cerne.errors import CerneError
from cerne.vmm.config import VmmConfig
from cerne.vmm.machine import Machine


def main() -> int:
    """Run the machine of the configuration that is named; 0 where it ended in order."""
    try:
        end = Machine(VmmConfig.read(Path(sys.argv[1]))).run()
    except CerneError as error:
        print(error, file=sys.stderr)
        return 1
    return 0 if end.orderly else 1


if __name__ == "__main__":
    sys.exit(main())
