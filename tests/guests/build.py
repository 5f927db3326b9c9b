"""Builds our small guests with gcc: freestanding, and without what an emulated ring 0 lacks."""

from __future__ import annotations

import subprocess
from pathlib import Path

HERE = Path(__file__).parent

_FLAGS = (
    *("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-nostdlib", "-static"),
    *("-mgeneral-regs-only", "-mno-red-zone", "-mcmodel=small", "-fno-pic", "-no-pie"),
    *("-fno-stack-protector", "-fcf-protection=none", "-fno-asynchronous-unwind-tables"),
    *("-fno-tree-loop-distribute-patterns", "-Wl,--build-id=none", "-Wl,-z,noexecstack"),
    *("-Wl,--no-warn-rwx-segments", f"-Wl,-T,{HERE / 'guest.lds'}"),
)

# Without an entry for Linux's protocol, a kernel is entered by PVH.
_ONLY_PVH = ("-Wl,-e,0",)

IPXE = Path("/usr/lib/ipxe/ipxe.lkrn")
"""Of the package ipxe: a bzImage that only a BIOS can enter."""

SOURCES = {
    "busy": ("start.S", "interrupts.c", "busy.c"),
    "balloon": ("start.S", "interrupts.c", "balloon.c"),
    "ipxe": (*_ONLY_PVH, f'-DKERNEL="{IPXE}"', "bios.S"),
    "disk": ("start.S", "interrupts.c", "disk.c"),
    "memory": ("start.S", "interrupts.c", "memory.c"),
    "machine": ("start.S", "interrupts.c", "machine.c"),
    "exerciser": ("start.S", "interrupts.c", "exerciser.c"),
    "pvh": (*_ONLY_PVH, "pvh.S"),
}
"""The guests: files of this directory, and flags of their own."""


def build(sources: tuple[str, ...], output: Path) -> Path:
    """A kernel made of these sources.

    Raises:
        subprocess.CalledProcessError: gcc refuses them.
    """
    files = [source if source.startswith("-") else str(HERE / source) for source in sources]
    subprocess.run(["gcc", *_FLAGS, "-o", str(output), *files], check=True)
    return output
