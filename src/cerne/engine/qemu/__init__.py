"""The engine `qemu`: machines by QEMU, on KVM if it runs guests at hardware speed, else by TCG."""

from cerne.engine.qemu.engine import QemuEngine

__all__ = ["QemuEngine"]
