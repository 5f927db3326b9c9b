"""The image ``tiny``: a kernel, and an initramfs with busybox and the agent."""

from __future__ import annotations

import shutil
from pathlib import Path

from cerne.guest.build import agent_binary
from cerne.images import distribution_kernel as stock_kernel
from cerne.images import kernel as own_kernel
from cerne.images.distribution_kernel import distribution_kernel
from cerne.images.initramfs import write_tiny
from cerne.images.kernel import current_kernel
from cerne.images.parts import Parts
from cerne.images.progress import Progress

COMMAND_LINE = "console=ttyS0 quiet"


def build(work: Path, cache: Path, progress: Progress) -> Parts:
    """Make the image's parts in a work directory."""
    own = current_kernel(cache)
    progress("Building the agent", 0, None)
    agent = agent_binary(cache)
    if own is not None:
        source: Path = own.path
        modules: tuple[Path, ...] = ()
        least = own_kernel.LEAST_MEMORY
    else:
        stock = distribution_kernel(cache, progress)
        source, modules = stock.kernel, stock.modules
        least = stock_kernel.LEAST_MEMORY
    progress("Writing the initramfs", 0, None)
    initrd = work / "initrd"
    write_tiny(initrd, agent, modules)
    kernel = work / "kernel"
    shutil.copyfile(source, kernel)
    return Parts(kernel, initrd, COMMAND_LINE, agent=True, least_memory=least)
