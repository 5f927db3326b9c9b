"""The addresses of user-mode networking, the same in every machine: each has a separate net.

They are the addresses of QEMU's user network, which all engines use, so that an image finds the
same network on each engine. The IPv6 prefix is a unique local one (RFC 4193), so that guests whose
host has no IPv6 prefer IPv4 (RFC 6724).
"""

from __future__ import annotations

import socket

ADDRESS = "10.0.2.15"
GATEWAY = "10.0.2.2"
"""The gateway, where the guest finds the ports of the host that were opened for it."""
NAME_SERVER = "10.0.2.3"
"""The name server, which asks the host's name servers."""
MASK = "255.255.255.0"
PREFIX6 = "fd43:6572:6e65::"
"""The IPv6 prefix, of 64 bits."""
GATEWAY6 = "fe80::2"
GATEWAY_MAC = "52:55:0a:00:02:02"
"""The hardware address of the gateway, the same after each restart of what serves it."""
MTU = 1500
RESOLVER_DIRECTORY = "/run/systemd/resolve"
"""Where systemd-resolved has the name servers behind itself."""


def address6(mac: str) -> str:
    """The IPv6 address that the kernel of a guest with this card takes (RFC 4291, EUI-64)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    prefix = socket.inet_pton(socket.AF_INET6, PREFIX6)[:8]
    return socket.inet_ntop(socket.AF_INET6, prefix + identifier)


def kernel_parameter(host_name: str) -> str:
    """The kernel's ``ip=`` parameter that configures the first card without DHCP.

    Documentation/admin-guide/nfs/nfsroot.rst of the kernel. It also sets the guest's host name.
    """
    return f"ip={ADDRESS}::{GATEWAY}:{MASK}:{host_name}:eth0:off:{NAME_SERVER}"


def name_parameter(host_name: str) -> str:
    """The same parameter for a guest whose network Cerne does not configure: the name only."""
    return f"ip=::::{host_name}::off"
