"""The addresses of user-mode networking, the same for every machine: each has a net of its own.

They are those of QEMU's user network, which the other engines keep to, so that an image finds the
same network on each of them.
"""

from __future__ import annotations

ADDRESS = "10.0.2.15"
GATEWAY = "10.0.2.2"
"""Leads to the host itself, too."""
NAME_SERVER = "10.0.2.3"
"""Asks whatever name servers the host asks."""
MASK = "255.255.255.0"


def kernel_parameter(host_name: str) -> str:
    """The kernel's ``ip=`` parameter that configures the first card with no DHCP at all.

    Documentation/admin-guide/nfs/nfsroot.rst of the kernel. It names the guest, too.
    """
    return f"ip={ADDRESS}::{GATEWAY}:{MASK}:{host_name}:eth0:off:{NAME_SERVER}"


def name_parameter(host_name: str) -> str:
    """The same parameter for a guest whose network is not ours to configure: it is named alone."""
    return f"ip=::::{host_name}::off"
