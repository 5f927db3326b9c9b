"""The accelerators of QEMU."""

from enum import StrEnum


class Accelerator(StrEnum):
    """The accelerator that runs the guest's instructions."""

    KVM = "kvm"
    TCG = "tcg"
