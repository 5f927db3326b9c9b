"""Runs a network's holder: ``python -m cerne.network.holder DIRECTORY``, by `start_network`.

When the network works, it writes ``{"result": null}`` to its standard output, else the error.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import sys
from pathlib import Path

from cerne.errors import CerneError
from cerne.host.members import Members
from cerne.network import stored
from cerne.network.control import SOCKET, Message, error_message
from cerne.network.holder.holder import ANCHOR, Holder
from cerne.network.holder.namespace import Inside, enter_user_namespace, privileged
from cerne.network.holder.server import serve

PLAN = "plan.json"


def main(directory: Path) -> None:
    """Hold the network whose plan is in this directory, until SIGTERM."""
    os.umask(0o077)
    os.chdir(directory)
    # Each connection through a published port has two sockets.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        asyncio.run(_hold(directory))
    except CerneError as error:
        _say(error_message(error))
        sys.exit(1)


async def _hold(directory: Path) -> None:
    plan = stored.network_plan().validate_json(Path(PLAN).read_bytes())
    members = Members(directory)
    anchors = members.alive(ANCHOR)
    anchor = anchors[0].pid if anchors else None
    if not privileged():
        enter_user_namespace(anchor)
    inside = Inside(anchor)
    holder = Holder(plan, inside, members)
    holder.start()
    Path(SOCKET).unlink(missing_ok=True)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await serve(holder.handle, stopped, lambda: _say({"result": None}))


def _say(message: Message) -> None:
    """Tell the command that waits, and close the pipe to it."""
    os.write(sys.stdout.fileno(), json.dumps(message).encode())
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
