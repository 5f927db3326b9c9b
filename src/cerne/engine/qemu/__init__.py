"""Machines run by QEMU: on KVM where it runs guests at the hardware's speed, by TCG elsewhere."""

from cerne.engine.qemu.engine import QemuEngine

__all__ = ["QemuEngine"]
