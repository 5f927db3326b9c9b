"""Hints for errors: the command to type if /dev/kvm is missing or not open to this user."""

from __future__ import annotations

import contextlib
import getpass
import grp
import os
from pathlib import Path


def missing_hint() -> str:
    """The command that makes /dev/kvm appear on this host."""
    with contextlib.suppress(OSError):
        flags = Path("/proc/cpuinfo").read_text().split()
        if "svm" in flags:
            return "load the module: sudo modprobe kvm_amd"
        if "vmx" in flags:
            return "load the module: sudo modprobe kvm_intel"
    return (
        "turn on virtualization (VT-x, AMD-V) in the firmware; "
        "in a virtual machine turn on nested virtualization on its host; "
        "in a container pass the device: --device /dev/kvm"
    )


def permission_hint(device: Path | str) -> str:
    """The command that gives this user access to a device."""
    user = _user()
    try:
        status = Path(device).stat()
        group = grp.getgrgid(status.st_gid).gr_name
    except (OSError, KeyError):
        return f"sudo setfacl -m u:{user}:rw {device}"
    if status.st_gid == 0 or status.st_mode & 0o060 != 0o060:
        return f"sudo setfacl -m u:{user}:rw {device}"
    return f"sudo usermod -aG {group} {user}, then log in again (or: newgrp {group})"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # In a container a user often has a number only.
        return str(os.getuid())
