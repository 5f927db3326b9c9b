"""A machine without a VMM: a namespace whose card is joined to a tap that a network gave.

``python -m tests.network.lab.machine DESCRIPTOR MAC`` reads requests from its standard input, one
JSON list a line, and answers each with a line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

from cerne.network.holder.namespace import enter_user_namespace, privileged
from cerne.network.tap import make_tap
from cerne.vmm.jail import system
from cerne.vmm.jail.system import Namespace

_CARD = "eth0"
_FRAME = 1 << 17
_HEADER = bytes(12)

_seen: list[bytes] = []


def _carry(source: int, target: int, seen: list[bytes] | None = None) -> None:
    while True:
        try:
            frame = os.read(source, _FRAME)
            if not frame:
                return
            if seen is not None:
                seen.append(frame[12:])
            os.write(target, frame)
        except OSError:
            return


def _run(command: list[str]) -> list[object]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [done.returncode, done.stdout + done.stderr]


def main() -> None:
    """Be a machine until the standard input ends."""
    network, mac = int(sys.argv[1]), sys.argv[2]
    if not privileged():
        enter_user_namespace(None)
    system.unshare(Namespace.NET)
    card = make_tap(_CARD)
    for command in f"ip link set lo up, ip link set {_CARD} address {mac} up".split(", "):
        subprocess.run(command.split(), check=True)
    accept = Path(f"/proc/sys/net/ipv6/conf/{_CARD}/accept_dad")
    if accept.exists():
        accept.write_text("0")
    threading.Thread(target=_carry, args=(network, card, _seen), daemon=True).start()
    threading.Thread(target=_carry, args=(card, network), daemon=True).start()
    print("ready", flush=True)
    for line in sys.stdin:
        request, *arguments = json.loads(line)
        answer: object = None
        match request:
            case "run":
                answer = _run(arguments)
            case "send":
                os.write(network, _HEADER + bytes.fromhex(arguments[0]))
            case "seen":
                answer = sum(bytes.fromhex(arguments[0]) in frame for frame in _seen)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
