"""Backends of others behind our front end: QEMU's storage daemon."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from tests.devices.test_vhost_user import Served

from cerne.devices.vhost_user.device import VhostUserBlock
from cerne.host.programs import find_program
from cerne.kvm.memory import GuestMemory
from cerne.units import MIB


@dataclass
class StorageDaemon:
    """A storage daemon with a disk of 1 MiB, which can be killed and begun again."""

    home: Path
    command: list[str]
    listener: socket.socket
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, pass_fds=[self.listener.fileno()])

    def die(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def connect(self) -> socket.socket:
        link = socket.socket(socket.AF_UNIX)
        link.connect(str(self.home / "disk"))
        return link


@pytest.fixture(params=["raw", "vmdk", "vdi", "vhdx"])
def daemon(home: Path, request: pytest.FixtureRequest) -> Iterator[StorageDaemon]:
    program = find_program("qemu-storage-daemon")
    if program is None:
        pytest.skip("qemu-storage-daemon is not installed")
    image = home / "image"
    create = ["qemu-img", "create", "-q", "-f", request.param, str(image), str(4 * MIB)]
    subprocess.run(create, check=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(home / "disk"))
        listener.listen()
        where = f"addr.type=fd,addr.str={listener.fileno()}"
        command = [
            *(str(program), "--blockdev", f"file,node-name=f,filename={image}"),
            *("--blockdev", f"{request.param},node-name=n,file=f"),
            *("--export", f"vhost-user-blk,id=e,node-name=n,writable=on,num-queues=2,{where}"),
        ]
        daemon = StorageDaemon(home, command, listener)
        daemon.start()
        yield daemon
        daemon.die()


def test_a_storage_daemon_is_killed_and_another_goes_on(
    daemon: StorageDaemon, memory: GuestMemory
) -> None:
    make = partial(VhostUserBlock, queues=4, patience=30)
    with contextlib.closing(Served(memory, daemon, make)) as served:
        assert len(served.device.queue_sizes) == 2
        assert served.guest.read(0x2000, 8) * 512 == 4 * MIB
        served.start()
        served.offer(1, 5, b"x" * 512)
        assert served.answer() == (0, b"")
        served.offer(0, 5, room=512)
        assert served.answer(512) == (0, b"x" * 512)
        for _ in range(2):
            served.kill()
            served.offer(0, 5, room=512)
            daemon.start()
            served.device.reconnect(daemon.connect())
            assert served.answer(512) == (0, b"x" * 512)
        served.guest.write(20, 1, 0)
        assert served.device.connected
    assert served.losses == ["the backend closed the connection"] * 2
