"""A host whose KVM runs guests' kernels at speed, made by QEMU, on machines that have none.

QEMU's TCG emulates AMD's SVM whole, so that a Debian under it, with its stock kernel and kvm_amd,
has a /dev/kvm that does with a guest what hardware does, and needs none of our helps.
`report_from` makes the disk of such a host, with Cerne and an image in it, boots it, and has it
run commands of a shell; what each says, and its exit status, come by the second serial port.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import cerne
from cerne.host.programs import find_program, install_command, require_program
from cerne.images import tiny
from cerne.images.debian import debian_system
from cerne.images.progress import silent
from cerne.images.store import ImageStore
from cerne.manager import Home
from cerne.units import GIB

_PYTHON = (3, 11)
"""Debian 12's; parts of our dependencies are compiled for one version."""

GUEST = "guest"
"""The image that the host has."""

_PACKAGES = "linux-image-amd64,python3,busybox,iproute2,kmod,passt,procps"
_DISK_SIZE = 4 * GIB
_HOME = "cerne"

_COMMAND_LINE = (
    "console=ttyS0 root=/dev/vda rw init=/steps mitigations=off no_timer_check tsc=reliable quiet"
    " panic=-1 nowatchdog net.ifnames=0"
)

# With a virtual GIF, which TCG has too, guests of the guest hang. Its clock is so slow that the
# probe's measure lies near what it takes for emulation: it is told what to find.
_INIT = f"""#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 TERM=dumb
export CERNE_HOME=/{_HOME} CERNE_TEMPLATES=never
mountpoint -q /proc || mount -t proc proc /proc
mountpoint -q /sys || mount -t sysfs sys /sys
mountpoint -q /dev || mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
modprobe kvm_amd vgif=0 vls=0 avic=0 nested=0
modprobe tun
modprobe virtio_net
ip link set lo up
ip link set eth0 up
ip address add 192.168.77.2/24 dev eth0
ip route add default via 192.168.77.1
cd /
exec 3>/dev/ttyS1
python3 - <<END
from pathlib import Path
from cerne.host.probe import KVM_DEVICE, GuestSpeed, _save, boot_id
key = f"{{boot_id()}} {{KVM_DEVICE.stat().st_ctime_ns}}"
_save(Path("/var/cache/cerne/guest-speed.json"), key, GuestSpeed(10**9, 10**9))
END
cerne() {{ python3 -m cerne "$@"; }}
inside() {{ name=$1; shift; cerne exec "$name" -- sh -c "$*"; }}
eventually() {{
    for i in $(seq 60); do "$@" && return; sleep 1; done
    echo "never: $*"
    return 1
}}
step() {{
    began=$(cut -d. -f1 /proc/uptime)
    echo "== $1 began" >&3
    (set -e; . "/steps.d/$1") </dev/null >/tmp/said 2>&1
    status=$?
    cat /tmp/said >&3
    [ -z "$(tail -c 1 /tmp/said)" ] || echo >&3
    echo "== $1 ended $status after $(($(cut -d. -f1 /proc/uptime) - began)) s" >&3
}}
"""
_END = """
sync
echo o > /proc/sysrq-trigger
sleep 100
"""
_STEP = re.compile(
    r"^== (\S+) began\n(.*?)^== \1 ended (\d+) after \d+ s$", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Shape:
    """What a host has."""

    packages: str = ""
    """Debian's packages in addition, separated by commas."""
    kernel: Path | None = None
    """A directory with another kernel than Debian's, which needs no initrd, and its modules."""
    processors: tuple[str, ...] = ("-smp", "2", "-m", "2G")
    """QEMU's options for its processors and memory."""


@dataclass(frozen=True, slots=True)
class Step:
    """How a step went."""

    said: str
    """Its output, both streams."""
    status: int


@dataclass(frozen=True, slots=True)
class Report:
    """What a host said of the steps that it was given."""

    steps: Mapping[str, Step]
    text: str
    """All of it, with steps that did not end."""
    console: str

    def said(self, name: str) -> str:
        """What a step said, which must have ended well."""
        step = self.steps.get(name)
        assert step is not None, f"{name} did not end:\n{self.text}\n{self.console[-2000:]}"
        assert step.status == 0, f"{name} failed ({step.status}):\n{step.said}"
        return step.said


def require_disk_maker() -> None:
    """Skip the test if the disk of such a host is not made here."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to make the host's disk")
    if sys.version_info[:2] != _PYTHON:
        pytest.skip("the host's Python is 3.11, and pydantic is here for another")
    if find_program("mmdebstrap") is None:
        pytest.skip(f"mmdebstrap is not installed: {install_command('mmdebstrap')}")


def report_from(
    steps: Mapping[str, str], *, qemu: Path, timeout: float, shape: Shape = Shape()
) -> Report:
    """Boot a host at speed, have it run steps by name, and return what it says of them.

    In a step, a failed command ends it. Beside a shell's own it has `cerne`, `inside MACHINE
    WORDS…` that has a guest's shell run words, and `eventually COMMAND…` that tries for a minute.

    It prints the report too. The test is skipped if the host's disk is not made here.

    Args:
        timeout: seconds after which it is ended, wherever it is.
    """
    require_disk_maker()
    with tempfile.TemporaryDirectory(prefix="cerne-host-") as work:
        report = _report_from(steps, Path(work), qemu, timeout, shape)
    print(report.text)
    return report


def _report_from(
    steps: Mapping[str, str], work: Path, qemu: Path, timeout: float, shape: Shape
) -> Report:
    cache = Home.of_this_user().cache
    root = work / "root"
    root.mkdir()
    packages = f"{_PACKAGES},{shape.packages}" if shape.packages else _PACKAGES
    archive = debian_system("bookworm", cache, silent, packages)
    subprocess.run(
        ["tar", "-xpf", archive, "-C", root, "--numeric-owner", "--exclude=./dev/*"], check=True
    )
    add_cerne(root)
    _add_image(root, cache)
    _add_steps(root, steps)
    kernel, initrd = _boot_parts(root, shape)
    for part in (kernel, initrd):
        if part is not None:
            shutil.copyfile(part, work / part.name)
    disk = work / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(_DISK_SIZE)
    options: list[str | Path] = ["-E", "lazy_itable_init=1", "-d", root]
    subprocess.run([require_program("mke2fs"), "-q", "-t", "ext4", *options, disk], check=True)
    boot: list[str | Path] = ["-kernel", work / kernel.name]
    boot += ["-initrd", work / initrd.name] if initrd is not None else []
    return read_report(_command(qemu, [*boot, *shape.processors], disk), work, timeout)


def _boot_parts(root: Path, shape: Shape) -> tuple[Path, Path | None]:
    """The kernel of a host, whose modules are in its root, and its initrd if it needs one."""
    if shape.kernel is None:
        return boot_files(root)
    (kernel,) = (shape.kernel / "boot").glob("vmlinuz-*")
    version = kernel.name.removeprefix("vmlinuz-")
    modules = f"lib/modules/{version}"
    shutil.copytree(shape.kernel / modules, root / "usr" / modules)
    subprocess.run(["chroot", root, "depmod", version], check=True)
    return kernel, None


def read_report(command: list[str | Path], work: Path, timeout: float) -> Report:
    """Run a host, whose serial ports are files in `work`, and return what it says of its steps."""
    try:
        done = subprocess.run(
            command,
            cwd=work,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    except subprocess.TimeoutExpired:
        # What it said till then tells where it hangs.
        pass
    said = (work / "report").read_text(errors="replace").replace("\r\n", "\n")
    found = {name: Step(words, int(status)) for name, words, status in _STEP.findall(said)}
    return Report(found, said, (work / "console").read_text(errors="replace"))


def add_cerne(root: Path) -> None:
    """Cerne as it is here, and what it depends on, as Debian's own Python finds it."""
    target = root / "usr/lib/python3/dist-packages"
    # The times are kept, and with them the worth of what is compiled already.
    shutil.copytree(Path(cerne.__file__).parent, target / "cerne")
    for name in _dependencies("cerne", set()):
        for file in distribution(name).files or ():
            if ".." in file.parts:
                continue
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(str(file.locate()), target / file)


def _dependencies(name: str, found: set[str]) -> Iterator[str]:
    for words in distribution(name).requires or ():
        needed = Requirement(words)
        if needed.name in found or (needed.marker and not needed.marker.evaluate({"extra": ""})):
            continue
        found.add(needed.name)
        yield needed.name
        yield from _dependencies(needed.name, found)


def _add_image(root: Path, cache: Path) -> None:
    """The image `GUEST`: tiny, whose kernel is kept from XSAVE.

    QEMU before 8.2 does not tell the host's KVM that a guest sets XCR0 (XSETBV is not
    intercepted), so that KVM sets it back, and takes from XSAVE what the guest means to be saved.
    """
    home = root / _HOME
    work = home / "work"
    work.mkdir(parents=True)
    parts = tiny.build(work, cache, silent)
    parts = replace(parts, command_line=f"{parts.command_line} noxsave")
    ImageStore(home / "images", cache).add(GUEST, parts, source="tiny")
    work.rmdir()


def _add_steps(root: Path, steps: Mapping[str, str]) -> None:
    directory = root / "steps.d"
    directory.mkdir()
    for name, script in steps.items():
        (directory / name).write_text(script)
    calls = "".join(f"step {name}\n" for name in steps)
    (root / "steps").write_text(_INIT + calls + _END)
    (root / "steps").chmod(0o755)


def boot_files(root: Path) -> tuple[Path, Path]:
    """The kernel and the initrd of a system."""
    (kernel,) = (root / "boot").glob("vmlinuz-*")
    (initrd,) = (root / "boot").glob("initrd.img-*")
    return kernel, initrd


def _command(qemu: Path, options: list[str | Path], disk: Path) -> list[str | Path]:
    return [
        *(qemu, "-nodefaults", "-display", "none", "-no-reboot"),
        *("-M", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max"),
        *(*options, "-append", _COMMAND_LINE),
        *("-drive", f"file={disk},format=raw,if=virtio,cache=unsafe"),
        *("-serial", "file:console", "-serial", "file:report"),
        *("-netdev", "user,id=n,net=192.168.77.0/24,host=192.168.77.1"),
        *("-device", "virtio-net-pci,netdev=n,romfile="),
    ]
