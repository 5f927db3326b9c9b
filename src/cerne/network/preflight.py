"""What networks need of this host, and what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from cerne.host.programs import find_program, install_command
from cerne.network.tap import TUN_DEVICE
from cerne.spec.network import Uplink

_PROGRAMS = {
    Uplink.USER: ("nft", "dnsmasq", "setpriv", "setsid", "pasta"),
    Uplink.NAT: ("nft", "dnsmasq", "setpriv", "setsid"),
    Uplink.BRIDGE: ("nft", "setpriv", "setsid"),
    Uplink.NONE: ("nft", "dnsmasq", "setpriv", "setsid"),
}
_PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class Lack:
    """Something that is missing for networks."""

    message: str
    hint: str
    """The command that helps."""


def lacks(uplink: Uplink) -> tuple[Lack, ...]:
    """What is missing here for a network with this uplink.

    What the kernel has is tried in a namespace of another process, which ends at once.
    """
    missing = [name for name in _PROGRAMS[uplink] if find_program(name) is None]
    found = [Lack(f"{name} is not installed", install_command(name)) for name in missing]
    if not os.access(TUN_DEVICE, os.R_OK | os.W_OK):
        found.append(_no_tun())
    if uplink in (Uplink.NAT, Uplink.BRIDGE) and os.geteuid() != 0:
        found.append(Lack(f"the uplink {uplink} needs root", "sudo cerne network create"))
    if "nft" not in missing:
        found += _tried()
    return tuple(found)


def _no_tun() -> Lack:
    if TUN_DEVICE.exists():
        return Lack(
            f"this user may not open {TUN_DEVICE}", f"sudo setfacl -m u:$USER:rw {TUN_DEVICE}"
        )
    return Lack(f"there is no {TUN_DEVICE}", "sudo modprobe tun")


def _tried() -> list[Lack]:
    """What a namespace with a bridge and rules lacks here."""
    program = [sys.executable, "-I", "-m", "cerne.network.holder.trial"]
    try:
        done = subprocess.run(
            program, capture_output=True, text=True, timeout=_PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        return [Lack("making a network namespace takes too long", f"see: {Path(program[0])}")]
    lines = done.stdout.splitlines()
    return [Lack(message, hint) for message, hint in zip(lines[::2], lines[1::2], strict=False)]
