"""Chooses the engine of a machine: the requested one, or the faster one on this host.

``auto`` takes ``native`` if the measured probe says that the kernel runs guests' kernel code at
hardware speed; else it takes ``qemu``, which emulates that code faster than such a kernel.
"""

from __future__ import annotations

from pathlib import Path

from cerne.engine.base import Engine
from cerne.engine.qemu import QemuEngine
from cerne.engine.qemu.accelerator import Accelerator
from cerne.errors import InputError
from cerne.host.probe import cached_guest_speed
from cerne.network.passt import has_passt

ENGINES = ("native", "qemu")
"""The names of all engines."""


def choose_engine(requested: str, speed_cache: Path) -> Engine:
    """The engine that ``auto``, ``native`` or ``qemu`` means on this host.

    `speed_cache` is the file that keeps the probe's figures; QEMU's version is kept beside it.

    Raises:
        InputError: there is no such engine.
    """
    if requested not in ("auto", *ENGINES):
        raise InputError(
            f"there is no engine named {requested!r}", hint="take auto, native or qemu"
        )
    speed = cached_guest_speed(speed_cache)
    fast = speed is not None and speed.ring0_native
    if requested == "auto":
        requested = "native" if fast and has_passt() else "qemu"
    if requested == "qemu":
        accelerator = Accelerator.KVM if fast else Accelerator.TCG
        return QemuEngine(accelerator, speed_cache.parent / "qemu-version.json")
    from cerne.engine.native import NativeEngine

    return NativeEngine(emulated=speed is not None and not fast)
