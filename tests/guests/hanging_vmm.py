"""A VMM's process whose disks hang while a file `hang` is in the directory of their file.

    python hanging_vmm.py CONFIG

A request of a disk in a file `DISK` waits as long as there is `DISK.hang`; `DISK.hung` gets a byte
for each that does. The time limits for such a request are short.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

from cerne.devices.block.raw import RawDisk
from cerne.vmm.__main__ import main


class HangingDisk(RawDisk):
    """A disk whose storage may hang."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor)
        # The process may not look into directories later, except through this descriptor.
        disk = Path(f"/proc/self/fd/{descriptor}").readlink()
        self._directory = os.open(disk.parent, os.O_PATH | os.O_CLOEXEC)
        self._name = f"{disk.name}.hang"
        self._hung = os.open(f"{disk}.hung", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC)

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        self._wait()
        super().read(offset, views)

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        self._wait()
        super().write(offset, views)

    def _wait(self) -> None:
        told = False
        while self._hangs():
            # What tells and what waits is one look: the file may come between two.
            if not told:
                os.write(self._hung, b"h")
                told = True
            time.sleep(0.005)

    def _hangs(self) -> bool:
        try:
            os.stat(self._name, dir_fd=self._directory)
        except FileNotFoundError:
            return False
        return True


def _open(files: Sequence[tuple[int, str]], *, read_only: bool) -> HangingDisk:
    return HangingDisk(files[0][0])


if __name__ == "__main__":
    limits = ("peripherals._LONG", "commands._PATIENCE", "commands._LONG_PATIENCE")
    for limit in limits:
        patch(f"cerne.vmm.{limit}", 2.0).start()
    patch("cerne.vmm.peripherals.open_chain", _open).start()
    sys.exit(main())
