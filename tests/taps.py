"""A network namespace with a tap in it, for tests: their addresses reach nothing else."""

from __future__ import annotations

import ctypes
import itertools
import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tests.waiting import eventually

from cerne.network.tap import open_tap

HOST_ADDRESS = "10.99.0.1"
GUEST_ADDRESS = "10.99.0.2"
TAP = "tap0"

_CLONE_NEWNET = 0x40000000
_numbers = itertools.count()

_T = TypeVar("_T")


class Namespace:
    """A network namespace of its own, which has a persistent tap with an address."""

    def __init__(self) -> None:
        self.name = f"cerne-{os.getpid()}-{next(_numbers)}"
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        self.ip("link", "set", "lo", "up")
        self.ip("tuntap", "add", "dev", TAP, "mode", "tap")
        self.ip("address", "add", f"{HOST_ADDRESS}/24", "dev", TAP)
        # Nothing is on it but what a test sends.
        self.ip("link", "set", "dev", TAP, "addrgenmode", "none")
        self.ip("link", "set", TAP, "up")

    @property
    def prefix(self) -> tuple[str, ...]:
        """What runs a command in it."""
        return ("ip", "netns", "exec", self.name)

    def run(self, *command: str) -> str:
        """What a command prints that is run in it."""
        done = subprocess.run([*self.prefix, *command], check=True, capture_output=True, text=True)
        return done.stdout

    def ip(self, *arguments: str) -> str:
        """What ip(8) prints."""
        return self.run("ip", *arguments)

    def within(self, action: Callable[[], _T]) -> _T:
        """What an action gives that is done in it: a socket that is made there stays there."""

        def enter() -> _T:
            with Path(f"/run/netns/{self.name}").open() as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            return action()

        # A thread enters for good, and ends.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(enter).result()

    def open_tap(self) -> int:
        """The tap's descriptor, once frames pass."""
        descriptor = self.within(lambda: open_tap(TAP))
        eventually(lambda: "state UP" in self.ip("link", "show", TAP))
        return descriptor

    def remove(self) -> None:
        """Remove it, with all that is in it."""
        subprocess.run(["ip", "netns", "delete", self.name], check=True)
