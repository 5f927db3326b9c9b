"""Taps: interfaces of this host whose other end is a machine (Documentation/networking/tuntap.rst).

A tap is made, given addresses and bridged by whoever administers the host, and stays when its
machine ends. It has one machine at a time, which needs no privilege where the tap was made for its
user.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path

from cerne.errors import CerneError, ConflictError, HostError, InputError

TUN_DEVICE = Path("/dev/net/tun")
_VHOST_NET = Path("/dev/vhost-net")

# From <linux/if_tun.h>, <linux/if.h> and <linux/sockios.h>.
_TUNSETIFF = 0x400454CA
_TUNSETVNETHDRSZ = 0x400454D8
_SIOCGIFMTU = 0x8921
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_FLAGS_REQUEST = struct.Struct("16sH22x")
_NUMBER_REQUEST = struct.Struct("16si20x")
_NUMBER = struct.Struct("i")
_HEADER_SIZE = 12
"""Bytes of the virtio_net_hdr before each frame."""


def open_tap(interface: str) -> int:
    """A descriptor of a tap that is there, of which no other process has one; with headers.

    Raises:
        ConflictError: another machine has it.
        HostError: there is none of this name, or this user may not have it.
        InputError: the interface is no tap.
    """
    _require_interface(interface)
    descriptor = _open_device()
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, _FLAGS_REQUEST.pack(interface.encode(), flags))
        fcntl.ioctl(descriptor, _TUNSETVNETHDRSZ, _NUMBER.pack(_HEADER_SIZE))
    except OSError as error:
        os.close(descriptor)
        raise _refusal(interface, error) from error
    return descriptor


def open_vhost() -> int | None:
    """The kernel's own way of serving taps; None where this host, or this user, has none."""
    with suppress(OSError):
        return os.open(_VHOST_NET, os.O_RDWR | os.O_CLOEXEC)
    return None


def require_tap(interface: str) -> None:
    """Refuse a tap that a machine cannot have now.

    Raises:
        ConflictError, HostError, InputError: what `open_tap` raises.
    """
    os.close(open_tap(interface))


def mtu_of(interface: str) -> int | None:
    """The largest packet of an interface's network, in bytes; None where it has gone."""
    request = _NUMBER_REQUEST.pack(interface.encode(), 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked, suppress(OSError):
        answer = fcntl.ioctl(asked, _SIOCGIFMTU, request)
        mtu: int = _NUMBER_REQUEST.unpack(answer)[1]
        return mtu
    return None


def _open_device() -> int:
    try:
        return os.open(TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        forbidden = isinstance(error, PermissionError)
        raise HostError(
            f"{TUN_DEVICE} cannot be opened: {error.strerror}",
            hint=f"sudo setfacl -m u:$USER:rw {TUN_DEVICE}" if forbidden else "sudo modprobe tun",
        ) from error


def _require_interface(interface: str) -> None:
    # With the privilege for it, opening one that is not there would make it, for a moment.
    try:
        socket.if_nametoindex(interface)
    except OSError as error:
        raise HostError(f"there is no tap {interface}", hint=_how_to_make(interface)) from error


def _refusal(interface: str, error: OSError) -> CerneError:
    match error.errno:
        case errno.EBUSY:
            return ConflictError(
                f"the tap {interface} is another machine's",
                hint="give each machine a tap of its own: --network tap:NAME",
            )
        case errno.EPERM:
            return HostError(
                f"the tap {interface} is not this user's",
                hint=f"sudo ip tuntap del dev {interface} mode tap; {_how_to_make(interface)}",
            )
        case errno.EINVAL:
            return InputError(
                f"{interface} is no tap, or one of several queues",
                hint=f"make a tap under a name that is free: {_how_to_make('NAME')}",
            )
        case _:
            return HostError(f"the tap {interface} cannot be had: {error.strerror}")


def _how_to_make(interface: str) -> str:
    make = f"sudo ip tuntap add dev {interface} mode tap user $USER"
    return f"{make}; sudo ip link set {interface} up"
