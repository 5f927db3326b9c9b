"""Machines of the engine `native` with a guest of a few bytes, for tests of what they are told."""

from __future__ import annotations

import shutil
import signal
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tests.processes import opened_files
from tests.waiting import PATIENCE

from cerne.engine.base import Instance
from cerne.engine.native import NativeEngine
from cerne.engine.plan import DiskPlan, KernelBoot, LaunchPlan
from cerne.engine.qmp import QmpClient
from cerne.host.process import ProcessIdentity
from cerne.units import MIB

# Answers each byte on its serial port with a byte of its memory, one more after each "i".
COUNTER = bytes.fromhex(
    "66bafd03eca80174f766baf803ec3c697507fe0425000020008a04250000200066baf803eeebd9"
)


class Fleet:
    """Machines of the counting guest; none is left when a test is over."""

    def __init__(self, home: Path, kernel: Path) -> None:
        self.engine = NativeEngine(emulated=False)
        self._home = home
        self.kernel = kernel
        self._plans: dict[str, LaunchPlan] = {}
        self._instances: dict[str, Instance] = {}

    def plan(self, name: str) -> LaunchPlan:
        """The plan of a machine, with its directories."""
        if name not in self._plans:
            runtime, logs = self._home / f"r{name}", self._home / f"l{name}"
            runtime.mkdir()
            logs.mkdir()
            boot = KernelBoot(self.kernel, None, "")
            self._plans[name] = LaunchPlan(name, name, 1, 16 * MIB, boot, (), (), (), runtime, logs)
        return self._plans[name]

    def change(self, name: str, disks: tuple[DiskPlan, ...]) -> None:
        """Give a machine other disks in its plan."""
        self._plans[name] = replace(self.plan(name), disks=disks)

    def start(self, name: str, saved: Path | None = None) -> None:
        plan = replace(self.plan(name), saved=saved)
        self.engine.require(plan)
        self._instances[name] = self.engine.start(plan)

    def fork(self, name: str, children: Sequence[str]) -> None:
        plans = [self.plan(child) for child in children]
        forked = self.instance(name).fork(self.plan(name).disks, plans)
        self._instances |= dict(zip(children, forked, strict=True))

    def save(self, name: str, *, resume: bool = True) -> Path:
        directory = self._home / "saved"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        self.instance(name).save(directory, self.plan(name).disks, resume=resume)
        return directory

    def say(self, name: str, words: bytes) -> int:
        """What a machine answers to the last of these bytes."""
        with socket.socket(socket.AF_UNIX) as console:
            console.settimeout(PATIENCE)
            console.connect(str(self.plan(name).console_socket))
            console.sendall(words)
            heard = b""
            while len(heard) < len(words):
                heard += console.recv(100)
        return heard[-1]

    def status(self, name: str) -> str:
        with QmpClient(self.plan(name).qmp_socket) as client:
            return client.status()

    def reset(self, name: str) -> None:
        with QmpClient(self.plan(name).qmp_socket) as client:
            client.execute("system_reset")
            client.wait_event("RESET", timeout=PATIENCE)

    def instance(self, name: str) -> Instance:
        return self._instances[name]

    def process(self, name: str) -> ProcessIdentity:
        return self.instance(name).process

    def files(self, name: str) -> list[str]:
        """What a machine's process has open, without sockets."""
        return opened_files(self.process(name).pid)

    def kill(self, *names: str) -> None:
        for name in names:
            self.process(name).send(signal.SIGKILL)
            self.process(name).wait(PATIENCE)

    def close(self) -> None:
        self.kill(*self._instances)
