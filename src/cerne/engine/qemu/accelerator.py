"""What runs the instructions of QEMU's guests."""

from enum import StrEnum


class Accelerator(StrEnum):
    """What runs the guest's instructions."""

    KVM = "kvm"
    TCG = "tcg"
