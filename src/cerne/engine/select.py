"""Which engine runs a machine: as asked, or the one that is quicker on this host.

``auto`` takes ``qemu``: with KVM where the measured probe says that the kernel runs guests' kernel
code at the hardware's speed, or else by TCG. ``native`` has to be asked for as long as it has fewer
devices than its images may want.
"""

from __future__ import annotations

from pathlib import Path

from cerne.engine.base import Engine
from cerne.engine.qemu import QemuEngine
from cerne.engine.qemu.command_line import Accelerator
from cerne.errors import InputError
from cerne.host.probe import cached_guest_speed


def choose_engine(requested: str, speed_cache: Path) -> Engine:
    """The engine that ``auto``, ``native`` or ``qemu`` means on this host.

    `speed_cache` is the file that keeps the probe's figures.

    Raises:
        InputError: there is no such engine.
    """
    if requested == "native":
        from cerne.engine.native import NativeEngine

        speed = cached_guest_speed(speed_cache)
        return NativeEngine(emulated=speed is not None and not speed.ring0_native)
    if requested not in ("auto", "qemu"):
        raise InputError(
            f"there is no engine named {requested!r}", hint="take auto, native or qemu"
        )
    return QemuEngine(qemu_accelerator(speed_cache))


def qemu_accelerator(speed_cache: Path) -> Accelerator:
    """What QEMU runs guests by here: KVM where their kernel code runs at the hardware's speed."""
    speed = cached_guest_speed(speed_cache)
    return Accelerator.KVM if speed is not None and speed.ring0_native else Accelerator.TCG
