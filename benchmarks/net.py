"""A guest's network card: frames a second, and the host's processor time for each; QEMU beside us.

The guest sends from ring 3 and looks for what is done. On the other side is a tap whose host has
nobody at the address, so that frames end there. Frames of 64 KiB are TCP segments that the host
would cut (GSO). What is received is what this script writes to the tap's interface. Needs root.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from _guest import Guests, Measured, rate_and_cost
from _measure import print_table
from _native import machines
from cerne.engine.plan import TapNic

_RUNS = 3
_TAP = "cerne-bench"
_MAC = "02:00:00:00:00:fd"
_FRAME = 1514
# A tenth of a million frames a second at the most, for so many seconds.
_BURST, _PAUSE = 100, 0.001
_LONGEST = 100.0


@dataclass(frozen=True, slots=True)
class _Load:
    """What the guest does with its card."""

    what: str
    command: str
    count: int
    receives: bool = False


_LOADS = (
    _Load("sent, 1514 bytes", "send 1514 60000 0", 60000),
    _Load("sent, 64 KiB of TCP", "send 65226 20000 1", 20000),
    _Load("received, 1514 bytes", "receive 10000", 10000, receives=True),
)

Way = Callable[[_Load], Measured]


def main() -> None:
    """Measure, and print the table."""
    with machines() as made, _tap():
        guests = Guests(made)
        ways: dict[str, Way] = {
            "Cerne, Python": partial(_python, guests),
            "QEMU": partial(_qemu, guests),
        }
        rows = [_row(load, ways) for load in _LOADS]
    title = f"virtio-net on a tap: thousands of frames a second, µs of CPU for each; {_RUNS} runs"
    print_table(title, ("frames", *ways), rows)


def _row(load: _Load, ways: dict[str, Way]) -> tuple[str, ...]:
    runs = [[way(load) for way in ways.values()] for _ in range(_RUNS)]
    cells = (rate_and_cost(load.count, several) for several in zip(*runs, strict=True))
    return (load.what, *cells)


def _python(guests: Guests, load: _Load) -> Measured:
    with _traffic(load):
        return guests.native(load.command, nics=[TapNic(_MAC, _TAP)])


def _qemu(guests: Guests, load: _Load) -> Measured:
    with _traffic(load):
        return guests.qemu(
            load.command,
            *("-netdev", f"tap,id=tap,ifname={_TAP},script=no,downscript=no,vhost=off"),
            *("-device", f"virtio-net-pci,disable-legacy=on,netdev=tap,mac={_MAC},romfile="),
        )


@contextlib.contextmanager
def _tap() -> Iterator[None]:
    for command in (
        ("tuntap", "add", "dev", _TAP, "mode", "tap", "vnet_hdr"),
        ("link", "set", _TAP, "txqueuelen", "10000", "up"),
    ):
        subprocess.run(["ip", *command], check=True)
    try:
        yield
    finally:
        subprocess.run(["ip", "tuntap", "del", "dev", _TAP, "mode", "tap"], check=True)


@contextlib.contextmanager
def _traffic(load: _Load) -> Iterator[None]:
    """Frames for the guest, until it has had enough, where it is to receive some."""
    if not load.receives:
        yield
        return
    enough = threading.Event()
    sender = threading.Thread(target=_write_frames, args=(enough,))
    sender.start()
    try:
        yield
    finally:
        enough.set()
        sender.join()


def _write_frames(enough: threading.Event) -> None:
    frame = bytes.fromhex(_MAC.replace(":", "")) + bytes.fromhex("0200000000fe 88b5")
    frame += bytes(_FRAME - len(frame))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
        link.bind((_TAP, 0))
        deadline = time.monotonic() + _LONGEST
        while time.monotonic() < deadline and not enough.wait(_PAUSE):
            for _ in range(_BURST):
                # The guest's monitor is not there yet, or is slower.
                with contextlib.suppress(OSError):
                    link.send(frame)


if __name__ == "__main__":
    main()
