"""A host with version 2 of control groups, made by QEMU, on machines that have version 1 alone.

It is a Debian with its stock kernel, with systemd as its first process, or without it. Control
groups need no KVM: it runs the trials of `tests/host/cell_trials.py` as root and as another user.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.e2e.host_at_speed import Report, add_cerne, boot_files, read_report
from tests.host import cell_trials

from cerne.host.programs import require_program
from cerne.images.debian import debian_system
from cerne.images.progress import silent
from cerne.units import GIB

USER = "someone"
_PACKAGES = (
    "linux-image-cloud-amd64,python3,systemd,systemd-sysv,dbus,dbus-user-session,libpam-systemd,"
    "procps,kmod,util-linux"
)
_DISK_SIZE = 2 * GIB
_TRIALS = "/opt/cell_trials.py"
_COMMAND_LINE = (
    "console=ttyS0 root=/dev/vda rw mitigations=off no_timer_check tsc=reliable quiet panic=-1"
    " nowatchdog net.ifnames=0 psi=1"
)

_STEPS = """
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 TERM=dumb
exec 3>/dev/ttyS1
step() {
    name=$1
    shift
    echo "== $name began" >&3
    began=$(cut -d. -f1 /proc/uptime)
    "$@" </dev/null >/tmp/said 2>&1
    status=$?
    cat /tmp/said >&3
    echo "== $name ended $status after $(($(cut -d. -f1 /proc/uptime) - began)) s" >&3
}
trials() { mkdir -p "$1" && python3 TRIALS "$1"; }
""".replace("TRIALS", _TRIALS)

_WITH_SYSTEMD = """#!/bin/sh
. /steps
step root trials /tmp/root
until [ -S /run/user/1000/bus ]; do sleep 0.2; done
step user su -l someone -c 'mkdir -p /tmp/user && python3 TRIALS /tmp/user'
step left find /sys/fs/cgroup -name 'cerne-*'
sync
echo o >/proc/sysrq-trigger
""".replace("TRIALS", _TRIALS)

_WITHOUT = """#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mountpoint -q /dev || mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mount -t cgroup2 none /sys/fs/cgroup
. /steps
step root trials /tmp/root
delegated=/sys/fs/cgroup/delegated
mkdir -p $delegated/shell
echo '+cpu +memory +pids' >$delegated/cgroup.subtree_control
chown 1000:1000 $delegated $delegated/cgroup.procs $delegated/cgroup.subtree_control
chown -R 1000:1000 $delegated/shell
inside() {
    echo $$ >$delegated/shell/cgroup.procs
    setpriv --reuid=1000 --regid=1000 --clear-groups sh -c \
        'mkdir -p /tmp/user && exec python3 TRIALS /tmp/user'
}
step user inside
echo 0 >/sys/fs/cgroup/cgroup.procs
step alone setpriv --reuid=1000 --regid=1000 --clear-groups sh -c \
    'mkdir -p /tmp/alone && exec python3 TRIALS /tmp/alone'
step left find /sys/fs/cgroup -name 'cerne-*'
sync
echo o >/proc/sysrq-trigger
sleep 100
""".replace("TRIALS", _TRIALS)

_UNIT = """[Unit]
After=multi-user.target user@1000.service dbus.service
[Service]
Type=oneshot
ExecStart=/with-systemd
TimeoutStartSec=infinity
[Install]
WantedBy=default.target
"""


def make_disk(cache: Path, work: Path) -> Path:
    """The disk of such a host, beside its kernel and initrd."""
    root = work / "root"
    root.mkdir()
    archive = debian_system("bookworm", cache, silent, _PACKAGES)
    subprocess.run(
        ["tar", "-xpf", archive, "-C", root, "--numeric-owner", "--exclude=./dev/*"], check=True
    )
    add_cerne(root)
    _add_trials(root)
    for part in boot_files(root):
        shutil.copyfile(part, work / part.name)
    disk = work / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(_DISK_SIZE)
    options: list[str | Path] = ["-E", "lazy_itable_init=1", "-d", root]
    subprocess.run([require_program("mke2fs"), "-q", "-t", "ext4", *options, disk], check=True)
    return disk


def report_of(qemu: Path, disk: Path, timeout: float, *, systemd: bool) -> Report:
    """Boot a copy of the disk, and return what the trials said."""
    work = disk.parent / ("systemd" if systemd else "plain")
    work.mkdir()
    (kernel,) = disk.parent.glob("vmlinuz-*")
    (initrd,) = disk.parent.glob("initrd.img-*")
    init = "/sbin/init" if systemd else "/without-systemd"
    command: list[str | Path] = [
        *(qemu, "-nodefaults", "-display", "none", "-no-reboot"),
        *("-M", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max"),
        *("-smp", "2", "-m", "1G"),
        *("-kernel", kernel, "-initrd", initrd, "-append", f"{_COMMAND_LINE} init={init}"),
        *("-drive", f"file={disk},format=raw,if=virtio,cache=unsafe,snapshot=on"),
        *("-serial", "file:console", "-serial", "file:report"),
    ]
    return read_report(command, work, timeout)


def _add_trials(root: Path) -> None:
    shutil.copyfile(cell_trials.__file__, root / _TRIALS.lstrip("/"))
    (root / "steps").write_text(_STEPS)
    for name, script in (("with-systemd", _WITH_SYSTEMD), ("without-systemd", _WITHOUT)):
        (root / name).write_text(script)
        (root / name).chmod(0o755)
    (root / "etc/systemd/system/trials.service").write_text(_UNIT)
    _enable(root, "etc/systemd/system/default.target.wants/trials.service")
    linger = root / "var/lib/systemd/linger" / USER
    linger.parent.mkdir(parents=True, exist_ok=True)
    linger.touch()
    home = root / "home" / USER
    home.mkdir()
    shutil.chown(home, 1000, 1000)
    _append(root / "etc/passwd", f"{USER}:x:1000:1000::/home/{USER}:/bin/sh")
    _append(root / "etc/shadow", f"{USER}:*:20000:0:99999:7:::")
    _append(root / "etc/group", f"{USER}:x:1000:")


def _enable(root: Path, link: str) -> None:
    path = root / link
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("/etc/systemd/system/trials.service")


def _append(file: Path, line: str) -> None:
    with file.open("a") as text:
        text.write(f"{line}\n")
