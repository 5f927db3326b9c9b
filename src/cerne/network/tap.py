"""Taps: interfaces of this host whose other end is a machine (Documentation/networking/tuntap.rst).

The administrator of the host makes a tap, gives it addresses and puts it on a bridge; the tap stays
when its machine ends. One machine at a time uses it, without privilege if the tap was made for the
machine's user.
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
_IFF_TUN_EXCL = 0x8000
_FLAGS_REQUEST = struct.Struct("16sH22x")
_NUMBER_REQUEST = struct.Struct("16si20x")
_NUMBER = struct.Struct("i")
_HEADER_SIZE = 12
"""Bytes of the virtio_net_hdr before each frame."""


def open_tap(interface: str) -> int:
    """Open an existing tap that no other process has open, with headers.

    Raises:
        ConflictError: another machine has the tap.
        HostError: there is no tap of this name, or this user may not open it.
        InputError: the interface is not a tap.
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


def make_tap(interface: str) -> int:
    """Make a tap in this thread's network namespace, which exists while it is open, with headers.

    Raises:
        HostError: making it failed.
    """
    descriptor = _open_device()
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | _IFF_TUN_EXCL
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, _FLAGS_REQUEST.pack(interface.encode(), flags))
        fcntl.ioctl(descriptor, _TUNSETVNETHDRSZ, _NUMBER.pack(_HEADER_SIZE))
    except OSError as error:
        os.close(descriptor)
        raise HostError(f"making the tap {interface} failed: {error.strerror}") from error
    return descriptor


def open_vhost() -> int | None:
    """Open the kernel's server of taps (vhost-net); None if this host or this user has none."""
    with suppress(OSError):
        return os.open(_VHOST_NET, os.O_RDWR | os.O_CLOEXEC)
    return None


def require_tap(interface: str) -> None:
    """Refuse a tap that is not free for a machine now.

    Raises:
        ConflictError, HostError, InputError: as `open_tap`.
    """
    os.close(open_tap(interface))


def mtu_of(interface: str) -> int | None:
    """The largest packet of an interface's network, in bytes; None if the interface is gone."""
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
            f"opening {TUN_DEVICE} failed: {error.strerror}",
            hint=f"sudo setfacl -m u:$USER:rw {TUN_DEVICE}" if forbidden else "sudo modprobe tun",
        ) from error


def _require_interface(interface: str) -> None:
    # A privileged process that opens a missing tap would make it for a moment.
    try:
        socket.if_nametoindex(interface)
    except OSError as error:
        raise HostError(f"there is no tap {interface}", hint=_how_to_make(interface)) from error


def _refusal(interface: str, error: OSError) -> CerneError:
    match error.errno:
        case errno.EBUSY:
            return ConflictError(
                f"another machine has the tap {interface}",
                hint="give each machine a tap of its own: --network tap:NAME",
            )
        case errno.EPERM:
            return HostError(
                f"the tap {interface} belongs to another user",
                hint=f"sudo ip tuntap del dev {interface} mode tap; {_how_to_make(interface)}",
            )
        case errno.EINVAL:
            return InputError(
                f"{interface} is not a tap, or has several queues",
                hint=f"make a tap with a free name: {_how_to_make('NAME')}",
            )
        case _:
            return HostError(f"opening the tap {interface} failed: {error.strerror}")


def _how_to_make(interface: str) -> str:
    make = f"sudo ip tuntap add dev {interface} mode tap user $USER"
    return f"{make}; sudo ip link set {interface} up"
