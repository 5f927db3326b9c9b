"""Whether an address belongs to this host: the kernel is asked for its route (rtnetlink(7)).

The answer is that of a connection which this host makes itself, as passt does for a guest.
"""

from __future__ import annotations

import errno
import socket
import struct

_RTM_NEWROUTE, _RTM_GETROUTE = 24, 26
_NLM_F_REQUEST = 1
_NLMSG_ERROR = 2
_RTN_UNICAST = 1
_RTA_DST = 1
_HEADER = struct.Struct("=IHHII")
_ROUTE = struct.Struct("=BBBBBBBBI")
_ATTRIBUTE = struct.Struct("=HH")
_ERROR = struct.Struct("=i")
_TYPE_OFFSET = _HEADER.size + 7
_LARGEST = 16384
_PATIENCE = 1.0
_NO_ROUTE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL)
"""Answers with which a connection fails too."""


class OwnAddresses:
    """Asks the kernel of the network namespace in which it was made."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.settimeout(_PATIENCE)
        self._sequence = 0

    def has(self, address: bytes) -> bool:
        """Whether this host answers at an address of 4 or 16 bytes, or all of a network do.

        True if the kernel gives no clear answer.
        """
        try:
            answer = self._asked(address)
        except OSError:
            return True
        if len(answer) < _HEADER.size + _ROUTE.size:
            return True
        kind = _HEADER.unpack_from(answer)[1]
        if kind == _NLMSG_ERROR:
            return -_ERROR.unpack_from(answer, _HEADER.size)[0] not in _NO_ROUTE
        return kind != _RTM_NEWROUTE or answer[_TYPE_OFFSET] != _RTN_UNICAST

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _asked(self, address: bytes) -> bytes:
        self._sequence += 1
        family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
        body = _ROUTE.pack(family, 8 * len(address), 0, 0, 0, 0, 0, 0, 0)
        body += _ATTRIBUTE.pack(_ATTRIBUTE.size + len(address), _RTA_DST) + address
        size = _HEADER.size + len(body)
        self._socket.sendto(
            _HEADER.pack(size, _RTM_GETROUTE, _NLM_F_REQUEST, self._sequence, 0) + body, (0, 0)
        )
        while True:
            answer = self._socket.recv(_LARGEST)
            # An answer that came after its time limit is of another address.
            if len(answer) < _HEADER.size or _HEADER.unpack_from(answer)[3] == self._sequence:
                return answer
