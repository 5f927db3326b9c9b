"""``cerne.vmm.start fork-server SOCKET NAME``: a process that has a VMM loaded, and forks machines.

Python takes longer to import the VMM than to make a machine; a program that starts many machines
imports it once here, and the machines share the imported modules (fork(2), copy-on-write). A
request is the configuration of a machine, in one message of a seqpacket socket; its descriptors
come in messages before it (SCM_RIGHTS, unix(7)). The answer is the pid of its process, or why there
is none. It ends when the other end of the socket is closed; the machines do not.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys

from cerne import faults
from cerne.devices.state import PlainState, SavedState
from cerne.errors import CerneError
from cerne.vmm.__main__ import end_of
from cerne.vmm.config import VmmConfig
from cerne.vmm.descriptors import DESCRIPTORS_AT_ONCE, NO_DESCRIPTORS_LEFT, raise_limit
from cerne.vmm.fork import registered, with_log_of_its_own
from cerne.vmm.jail.title import Title

LARGEST_REQUEST = 128 * 1024
"""Bytes of a configuration."""


def main() -> int:
    """Fork machines until the socket is closed."""
    requests = socket.socket(fileno=int(sys.argv[1]))
    # Nothing waits for the children.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    raise_limit()
    title = Title()
    descriptors: list[int] = []
    some_lost = False
    while True:
        data, sent, flags, _ = socket.recv_fds(
            requests, LARGEST_REQUEST, DESCRIPTORS_AT_ONCE, socket.MSG_CMSG_CLOEXEC
        )
        descriptors += sent
        some_lost = some_lost or bool(flags & socket.MSG_CTRUNC)
        if not data and not sent:
            return 0
        if data != b" ":
            if some_lost:
                answer: PlainState = {"error": NO_DESCRIPTORS_LEFT}
            else:
                answer = _fork(requests, title, data, tuple(descriptors))
            # Before it is answered: what the machine has locked is locked by it alone.
            for descriptor in descriptors:
                os.close(descriptor)
            descriptors.clear()
            some_lost = False
            requests.send(json.dumps(answer).encode())


def _fork(
    requests: socket.socket, title: Title, request: bytes, descriptors: tuple[int, ...]
) -> PlainState:
    saved = SavedState("a machine's configuration", json.loads(request))
    try:
        config = VmmConfig.from_saved(saved, descriptors.__getitem__)
        pid = os.fork()
    except CerneError as error:
        return {"error": error.message}
    except OSError as error:
        return {"error": f"the host does not fork the VMM: {error.strerror}"}
    if pid == 0:
        config = registered(config)
        title.set(config.identity)
        faults.step("born")
        requests.close()
        os.setsid()
        sys.exit(end_of(lambda: with_log_of_its_own(config), title))
    return {"pid": pid}
