"""The addresses of user-mode networking, the same in every machine: each has a separate net.

They are the addresses of QEMU's user network, which all engines use, so that an image finds the
same network on each engine.
"""

from __future__ import annotations

ADDRESS = "10.0.2.15"
GATEWAY = "10.0.2.2"
"""The gateway, which is also an address of the host."""
NAME_SERVER = "10.0.2.3"
"""The name server, which asks the host's name servers."""
MASK = "255.255.255.0"


def kernel_parameter(host_name: str) -> str:
    """The kernel's ``ip=`` parameter that configures the first card without DHCP.

    Documentation/admin-guide/nfs/nfsroot.rst of the kernel. It also sets the guest's host name.
    """
    return f"ip={ADDRESS}::{GATEWAY}:{MASK}:{host_name}:eth0:off:{NAME_SERVER}"


def name_parameter(host_name: str) -> str:
    """The same parameter for a guest whose network Cerne does not configure: the name only."""
    return f"ip=::::{host_name}::off"
