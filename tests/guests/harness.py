"""Runs the VMM's own process with a guest of ours, as the engine does, and watches it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.processes import opened
from tests.waiting import PATIENCE

from cerne.engine.opened import Opened
from cerne.units import MIB
from cerne.vmm.config import BootConfig, DiskConfig, FileConfig, NicConfig, VmmConfig, VsockConfig

_PATIENCE = 240
"""Seconds until a guest that has not come to an end is given up."""


@dataclass
class Running:
    """A VMM's process and where it writes."""

    home: Path
    process: subprocess.Popen[bytes]
    links: Sequence[socket.socket] = ()
    """The far ends of the network cards' cables."""

    @property
    def qmp(self) -> Path:
        """Its control socket."""
        return self.home / "qmp"

    def end(self, patience: float = _PATIENCE) -> tuple[bool, str]:
        """Wait for its end; how it says that the machine ended."""
        self.process.wait(patience)
        said = json.loads((self.home / "ending").read_text())
        return said["orderly"], said["reason"]

    def console(self) -> bytes:
        """What the guest wrote to its serial port."""
        return (self.home / "console.log").read_bytes()

    @contextlib.contextmanager
    def connected(self) -> Iterator[socket.socket]:
        """Its console."""
        with socket.socket(socket.AF_UNIX) as console:
            console.connect(str(self.home / "console"))
            console.settimeout(PATIENCE)
            yield console

    def files(self) -> list[str]:
        """What its process has open."""
        return opened(self.process.pid)

    def errors(self) -> str:
        """What the process itself said; once it has ended."""
        assert self.process.stderr is not None
        return self.process.stderr.read().decode(errors="replace")

    def wait_for(self, words: bytes) -> None:
        """Wait until the guest has written that; fails where it ends before."""
        deadline = time.monotonic() + _PATIENCE
        while words not in self.console():
            ended = self.process.poll() is not None
            if ended and words not in self.console():
                raise AssertionError(f"it ended before {words!r}: {self.errors()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"no {words!r} in {self.console()[-2000:]!r}")
            time.sleep(0.02)

    def cpu_time(self) -> float:
        """Seconds of processor that all its threads have used, the guest's too."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident(self) -> int:
        """Bytes of memory that it has in use, the guest's too."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


def ask(console: socket.socket, words: bytes) -> bytes:
    """What a guest answers, which answers each byte with one."""
    console.sendall(words)
    heard = b""
    while len(heard) < len(words):
        heard += console.recv(100)
    return heard


def _vsock(directory: Path, opened: Opened) -> VsockConfig:
    return VsockConfig(
        directory=opened.searched(directory), listener=opened.listening(directory / "guest.sock")
    )


@contextlib.contextmanager
def running(
    home: Path,
    kernel_file: Path,
    *,
    cpus: int = 1,
    max_cpus: int = 0,
    memory: int = 16 * MIB,
    command_line: str = "",
    disks: Sequence[Path] = (),
    nics: int = 0,
    vsock: bool = False,
    headroom: int = 0,
    emulated: bool = False,
    program: Sequence[str] = ("-m", "cerne.vmm"),
) -> Iterator[Running]:
    """A VMM's process with this kernel, raw disks, network cards whose cables end here, sockets.

    `program` is what Python runs, which gets the configuration.
    """
    links = [socket.socketpair() for _ in range(nics)]
    with Opened() as opened:
        config = VmmConfig(
            name="small",
            identity="small",
            cpus=cpus,
            max_cpus=max_cpus,
            memory=memory,
            boot=BootConfig(opened.existing(kernel_file), None, command_line),
            qmp=opened.listening(home / "qmp"),
            console=opened.listening(home / "console"),
            console_log=opened.log(home / "console.log"),
            agents=(opened.listening(home / "agent0"),),
            ending=opened.new(home / "ending"),
            disks=tuple(
                DiskConfig((FileConfig(opened.existing(disk, writable=True), "raw"),), f"disk{at}")
                for at, disk in enumerate(disks)
            ),
            nics=tuple(
                NicConfig(f"52:54:00:00:00:{at:02x}", link.fileno())
                for at, (link, _) in enumerate(links)
            ),
            vsock=_vsock(home / "vsock", opened) if vsock else None,
            headroom=headroom,
            emulated=emulated,
        )
        config.write(home / "config")
        process = subprocess.Popen(
            [sys.executable, *program, str(home / "config")],
            pass_fds=[*opened.descriptors, *(link.fileno() for link, _ in links)],
            stderr=subprocess.PIPE,
        )
    for link, _ in links:
        link.close()
    try:
        yield Running(home, process, [far for _, far in links])
    finally:
        process.kill()
        process.communicate()
        for _, far in links:
            far.close()
