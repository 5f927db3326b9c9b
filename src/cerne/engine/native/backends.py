"""Starts the processes that serve devices of a native machine, and that end with it.

QEMU's storage daemon serves disks of formats that the VMM does not read, and virtiofsd directories
of the host, both by vhost-user. `cerne.engine.supervised` starts each with its supervisor.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import subprocess
from functools import cache
from pathlib import Path

from cerne.engine.detached import listening_socket
from cerne.engine.opened import Opened
from cerne.engine.plan import DiskPlan, LaunchPlan, SharePlan
from cerne.engine.supervised import backend_log, backend_socket, room_of, supervised
from cerne.errors import DamagedError, ImageError, StorageError
from cerne.host.logs import last_line
from cerne.host.own_ids import has_own_ids
from cerne.host.programs import require_program
from cerne.storage.overlay import chain
from cerne.vmm.config import BackendConfig
from cerne.vmm.jail.calls import DIRECTORY_PROGRAM_CALLS, DISK_PROGRAM_CALLS
from cerne.vmm.jail.program import FILE_CAPABILITIES

_READ_FORMATS = frozenset({"raw", "qcow2"})
"""Formats of disks that the VMM reads itself."""
CHANGES = (7, 6, 18, 8)
"""What virtiofsd needs to change its threads' users, its root and, to fewer, its capabilities
(capabilities(7))."""


def require_backends(plan: LaunchPlan) -> None:
    """Refuse a plan that needs a missing program.

    Raises:
        MissingProgramError: a program is not installed.
    """
    if any(is_served_outside(disk) for disk in plan.disks):
        require_program("qemu-storage-daemon")
    if plan.shares:
        require_program("virtiofsd")
    if plan.shares and os.geteuid() != 0:
        require_program("unshare")


def require_readable(disk: DiskPlan) -> None:
    """Refuse a qcow2 file of this host with features that the VMM does not read or write.

    Raises:
        StorageError: opening it failed.
        ImageError: it has such features, or is damaged.
    """
    from cerne.devices.block.qcow2 import Qcow2Disk

    if not disk.shared or disk.format != "qcow2":
        return
    try:
        descriptor = os.open(disk.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StorageError(f"opening {disk.path} failed: {error.strerror}") from error
    try:
        # Nothing is written, because it is never closed as a disk.
        Qcow2Disk(descriptor, None, read_only=disk.read_only)
    except ImageError as error:
        raise ImageError(
            f"the native engine does not support {disk.path}: {error.message}",
            hint="use --engine qemu, or convert it:"
            f" qemu-img convert -f qcow2 -O qcow2 {disk.path} new.qcow2",
        ) from error
    finally:
        os.close(descriptor)


def needs_backends(plan: LaunchPlan) -> bool:
    """Whether other processes serve devices of the machine, and share its memory."""
    return bool(plan.shares) or any(is_served_outside(disk) for disk in plan.disks)


def keeps_memory(plan: LaunchPlan) -> bool:
    """Whether a machine has the memory of its start for all its run: it does not fork or grow."""
    return needs_backends(plan) or bool(plan.resources.memory.hugepages)


def is_served_outside(disk: DiskPlan) -> bool:
    """Whether a separate process serves a disk."""
    return disk.outside or disk.format not in _READ_FORMATS


def disk_backend(plan: LaunchPlan, index: int, opened: Opened) -> BackendConfig:
    """Start a storage daemon with a disk of the machine.

    Raises:
        StorageError: opening the disk failed.
        EngineError: starting the daemon failed.
    """
    disk = plan.disks[index]
    try:
        file = os.open(disk.path, (os.O_RDONLY if disk.read_only else os.O_RDWR) | os.O_CLOEXEC)
    except OSError as error:
        raise StorageError(f"opening {disk.path} failed: {error.strerror}") from error
    os.close(file)
    program = require_program("qemu-storage-daemon")
    # The daemon itself says what is wrong with a disk.
    under: list[Path] = []
    with contextlib.suppress(DamagedError):
        under = [path for path, _ in chain(disk.path, disk.format)[1:]]
    room = room_of(program, DISK_PROGRAM_CALLS)
    room.reads += [str(path) for path in ([disk.path] if disk.read_only else []) + under]
    room.writes += [] if disk.read_only else [str(disk.path)]
    with listening_socket(backend_socket(plan, f"disk{index}")) as listener:
        what = f"the storage daemon, which serves disk{index} of {plan.name},"
        command = [str(program), *_export(disk, listener, plan.cpus)]
        return supervised(plan, f"disk{index}", what, listener, opened, room, command)


def share_backend(plan: LaunchPlan, index: int, opened: Opened) -> BackendConfig:
    """Start a virtiofsd with a directory of the host.

    Raises:
        EngineError: starting it failed.
    """
    share = plan.shares[index]
    program = require_program("virtiofsd")
    room = room_of(program, DIRECTORY_PROGRAM_CALLS)
    # It has the owners and modes that the guest wants.
    room.settings = True
    room.capabilities += [*FILE_CAPABILITIES, *CHANGES]
    (room.reads if share.read_only else room.writes).append(str(share.source))
    with listening_socket(backend_socket(plan, share.tag)) as listener:
        what = f"virtiofsd, which serves {share.source} to {plan.name},"
        again = f"umount -l TARGET && mount -t virtiofs {share.tag} TARGET"
        command = [str(program), *_virtiofsd(program, share, listener)]
        return supervised(
            plan,
            share.tag,
            what,
            listener,
            opened,
            room,
            command,
            mending=f"in the guest, mount the directory again: {again}",
            before=_as_root(),
            own_user=False,
        )


def last_words(plan: LaunchPlan) -> str:
    """The last output of a backend of the machine, for an error."""
    names = [f"disk{index}" for index in range(len(plan.disks))]
    names += [share.tag for share in plan.shares]
    said = (last_line(backend_log(plan, name)) for name in names)
    return "; ".join(line for line in said if line)


def _export(disk: DiskPlan, listener: socket.socket, queues: int) -> list[str]:
    """The arguments with which a storage daemon serves a disk."""
    file = {"driver": "file", "node-name": "file", "filename": str(disk.path)}
    if stat.S_ISBLK(disk.path.stat().st_mode):
        file["driver"] = "host_device"
    format_ = {"driver": disk.format, "node-name": "disk", "file": "file"}
    writable = "off" if disk.read_only else "on"
    served = f"vhost-user-blk,id=disk,node-name=disk,writable={writable},num-queues={queues}"
    return [
        *("--blockdev", json.dumps({**file, "read-only": disk.read_only})),
        *("--blockdev", json.dumps({**format_, "read-only": disk.read_only})),
        *("--export", f"{served},addr.type=fd,addr.str={listener.fileno()}"),
    ]


def _as_root() -> list[str]:
    """The first words of a command that is root in its own namespaces, if this user is not."""
    if os.geteuid() == 0:
        return []
    # Without subordinate ids, it has only the id of this user.
    own_ids = ["--map-auto"] if has_own_ids() else []
    return ["unshare", "--user", "--map-root-user", *own_ids, "--mount", "--"]


def _virtiofsd(program: Path, share: SharePlan, listener: socket.socket) -> list[str]:
    socket_, sandbox = f"--fd={listener.fileno()}", "sandbox=chroot"
    # A file that the guest writes to is no longer setuid.
    without = "modcaps=-mknod:-setfcap:-fsetid"
    if _is_rust(program):
        return [socket_, f"--shared-dir={share.source}", f"--{sandbox}", f"--{without}"]
    # A comma ends an option of fuse unless it is escaped.
    source = str(share.source).replace("\\", "\\\\").replace(",", "\\,")
    options = f"source={source},{sandbox},cache=auto,{without}"
    return [socket_, "-f", "--rlimit-nofile=0", "-o", options]


@cache
def _is_rust(program: Path) -> bool:
    """Whether it is the newer virtiofsd in Rust, which has other options than QEMU's."""
    help_ = subprocess.run([program, "--help"], capture_output=True, check=False)
    return b"--shared-dir" in help_.stdout
