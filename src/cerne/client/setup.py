"""What a host can do, and its guest kernels: what needs none of its machines, and not their store.

It works without a store, and beside a damaged one.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from cerne.manager.home import Home

if TYPE_CHECKING:
    from cerne.host.report import Report
    from cerne.images import Progress
    from cerne.images.kernel import BuiltKernel


def report() -> Report:
    """What this host can do for virtual machines, and what to improve."""
    from cerne.engine.select import ENGINES, choose_engine
    from cerne.host.report import make_report

    speeds = Home.of_this_user().guest_speed
    able = {name: asdict(choose_engine(name, speeds).capabilities) for name in ENGINES}
    return make_report(speeds, choose_engine("auto", speeds).name, able)


def kernels() -> list[tuple[BuiltKernel, bool]]:
    """The guest kernels that were built here, the newest first, and whether each is current."""
    from cerne.images.kernel import built_kernels, current_kernel

    cache = Home.of_this_user().cache
    current = current_kernel(cache)
    return [(kernel, kernel == current) for kernel in built_kernels(cache)]


def build_kernel(progress: Progress | None = None) -> BuiltKernel:
    """Build the guest kernel of the distribution's source; this takes minutes.

    Raises:
        CerneError: building it failed; nothing is left of it.
    """
    from cerne.images import kernel

    return kernel.build_kernel(Home.of_this_user().cache, progress)
