"""Starts the processes that serve devices of a native machine, and that end with it.

QEMU's storage daemon serves disks of formats that the VMM does not read, and virtiofsd directories
of the host, both by vhost-user. `cerne.engine.supervised` starts each with its supervisor.
"""

from __future__ import annotations

import os
import socket
import subprocess
from functools import cache
from pathlib import Path

from cerne.engine.detached import listening_socket
from cerne.engine.opened import Opened
from cerne.engine.plan import DiskPlan, LaunchPlan, SharePlan
from cerne.engine.supervised import backend_log, backend_socket, supervised
from cerne.errors import ImageError, StorageError
from cerne.host.logs import last_line
from cerne.host.own_ids import has_own_ids
from cerne.host.programs import require_program
from cerne.vmm.config import BackendConfig

_READ_FORMATS = frozenset({"raw", "qcow2"})
"""Formats of disks that the VMM reads itself."""


def require_backends(plan: LaunchPlan) -> None:
    """Refuse a plan that needs a missing program.

    Raises:
        MissingProgramError: a program is not installed.
    """
    if any(is_served_outside(disk) for disk in plan.disks):
        require_program("qemu-storage-daemon")
    if plan.shares:
        require_program("virtiofsd")
    if needs_backends(plan):
        require_program("setpriv")


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


def is_served_outside(disk: DiskPlan) -> bool:
    """Whether a separate process serves a disk."""
    return disk.outside or disk.format not in _READ_FORMATS


def disk_backend(plan: LaunchPlan, index: int, opened: Opened) -> BackendConfig:
    """Start a storage daemon with a disk of the machine, which gets the open file.

    Raises:
        StorageError: opening the disk failed.
        EngineError: starting the daemon failed.
    """
    disk = plan.disks[index]
    mode = os.O_RDONLY if disk.read_only else os.O_RDWR
    try:
        file = os.open(disk.path, mode | os.O_CLOEXEC)
    except OSError as error:
        raise StorageError(f"opening {disk.path} failed: {error.strerror}") from error
    try:
        with listening_socket(backend_socket(plan, f"disk{index}")) as listener:
            program = require_program("qemu-storage-daemon")
            command = [*_apart(file), str(program), *_export(disk, file, listener, plan.cpus)]
            what = f"the storage daemon, which serves disk{index} of {plan.name},"
            return supervised(plan, f"disk{index}", what, listener, opened, command, [file])
    finally:
        os.close(file)


def share_backend(plan: LaunchPlan, index: int, opened: Opened) -> BackendConfig:
    """Start a virtiofsd with a directory of the host.

    Raises:
        EngineError: starting it failed.
    """
    share = plan.shares[index]
    with listening_socket(backend_socket(plan, share.tag)) as listener:
        program = require_program("virtiofsd")
        command = [*_namespaces(share), str(program), *_virtiofsd(program, share, listener)]
        what = f"virtiofsd, which serves {share.source} to {plan.name},"
        again = f"umount -l TARGET && mount -t virtiofs {share.tag} TARGET"
        mending = f"in the guest, mount the directory again: {again}"
        return supervised(plan, share.tag, what, listener, opened, command, mending=mending)


def last_words(plan: LaunchPlan) -> str:
    """The last output of a backend of the machine, for an error."""
    names = [f"disk{index}" for index in range(len(plan.disks))]
    names += [share.tag for share in plan.shares]
    said = (last_line(backend_log(plan, name)) for name in names)
    return "; ".join(line for line in said if line)


def _apart(file: int) -> list[str]:
    """The first words of a command that uses one file, and ends with its supervisor.

    For root the command runs as the file's owner, without capabilities and network: it opens the
    descriptor again, which the user nobody may not do.
    """
    command = ["setpriv", "--pdeathsig=KILL", "--no-new-privs"]
    if os.geteuid() != 0:
        return [*command, "--"]
    owner = os.fstat(file)
    command += [f"--reuid={owner.st_uid}", f"--regid={owner.st_gid}", "--clear-groups"]
    command += ["--bounding-set=-all", "--inh-caps=-all", "--"]
    return ["unshare", "--net", "--ipc", "--", *command]


def _export(disk: DiskPlan, file: int, listener: socket.socket, queues: int) -> list[str]:
    """The arguments with which a storage daemon serves a disk from an open file."""
    read_only = "on" if disk.read_only else "off"
    writable = "off" if disk.read_only else "on"
    served = f"vhost-user-blk,id=disk,node-name=disk,writable={writable},num-queues={queues}"
    return [
        "--blockdev",
        f"driver=file,node-name=file,filename=/proc/self/fd/{file},read-only={read_only}",
        "--blockdev",
        f"driver={disk.format},node-name=disk,file=file,read-only={read_only}",
        "--export",
        f"{served},addr.type=fd,addr.str={listener.fileno()}",
    ]


def _namespaces(share: SharePlan) -> list[str]:
    """The first words of a command for virtiofsd: it is root in its own namespaces.

    A read-only directory is mounted read-only, so that virtiofsd cannot write to it.
    """
    command = ["unshare", "--mount", "--propagation=private"]
    if os.geteuid() != 0:
        # Without subordinate ids, it has only the id of this user.
        command += ["--user", "--map-root-user", *(["--map-auto"] if has_own_ids() else [])]
    # Set after that, because setting the ids needs a setuid program, which clears the signal.
    command += ["--", "setpriv", "--pdeathsig=KILL", "--no-new-privs", "--"]
    if share.read_only:
        script = 'mount --bind -o ro -- "$0" "$0" && exec "$@"'
        command += ["sh", "-c", script, str(share.source)]
    return command


def _virtiofsd(program: Path, share: SharePlan, listener: socket.socket) -> list[str]:
    socket_ = f"--fd={listener.fileno()}"
    if _is_rust(program):
        return [socket_, f"--shared-dir={share.source}", "--sandbox=namespace"]
    # A comma ends an option of fuse unless it is escaped.
    source = str(share.source).replace("\\", "\\\\").replace(",", "\\,")
    options = f"source={source},sandbox=namespace,cache=auto,modcaps=-mknod:-setfcap"
    return [socket_, "-f", "--rlimit-nofile=0", "-o", options]


@cache
def _is_rust(program: Path) -> bool:
    """Whether it is the newer virtiofsd in Rust, which has other options than QEMU's."""
    help_ = subprocess.run([program, "--help"], capture_output=True, check=False)
    return b"--shared-dir" in help_.stdout
