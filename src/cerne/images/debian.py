"""Debian images: a system by mmdebstrap, with apt and the agent, on an ext4 disk.

A server has systemd, and the agent is a unit of it. A minimal one has none: the agent is the first
process, and the machine is ready in a second. mke2fs writes the file system from a directory, so
that nothing is mounted and no root is needed.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from cerne.errors import ImageError
from cerne.guest.build import agent_binary
from cerne.host.own_ids import as_root, require_own_ids
from cerne.host.programs import require_program
from cerne.images import distribution_kernel as stock_kernel
from cerne.images import kernel as own_kernel
from cerne.images.distribution_kernel import distribution_kernel
from cerne.images.files import locked, work_directory
from cerne.images.image import SYSTEMD
from cerne.images.initramfs import AGENT, write_loader
from cerne.images.kernel import current_kernel
from cerne.images.parts import Parts
from cerne.images.progress import Progress
from cerne.units import GIB, MIB

_ROOT = "console=ttyS0 quiet root=/dev/vda rw rootfstype=ext4"
COMMAND_LINE = f"{_ROOT} init=/usr/sbin/cerne-agent"
DISK_SIZE = 4 * GIB
"""The size that the guest sees; the file is sparse."""

_PACKAGES = "ca-certificates,iproute2,iputils-ping,procps,less"
_SERVER_PACKAGES = "systemd-sysv,dbus,udev,kmod,login,libpam-systemd,libnss-myhostname"
_SERVER_LEAST_MEMORY = 128 * MIB
_TIMEOUT = 1800.0
UNIT = Path(__file__).with_name("cerne-agent.service")
# It runs when a boot ends in an emergency too: the host looks at the guest through it.
_UNIT_TARGETS = ("sysinit.target", "rescue.target", "emergency.target")
_CONSOLE = """\
[Service]
ExecStart=
ExecStart=-/sbin/agetty --wait-cr --autologin root --noclear --keep-baud 115200 - $TERM
"""
# Seconds after which a fetched system is fetched again, because its packages are updated often.
_FRESH = 7 * 86400.0
# Files that a machine does not need, which dpkg does not unpack.
_EXCLUDED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*")


@dataclass(frozen=True, slots=True)
class Flavour:
    """A kind of Debian: what it has beside the essential packages, and how it starts."""

    packages: str
    command_line: str
    init: str
    least_memory: int
    """The least memory with which it boots, in bytes; 0 if it needs what its kernel needs."""
    own_kernel: bool
    """Whether Cerne's own kernel has all that it needs."""


MINIMAL = Flavour(_PACKAGES, COMMAND_LINE, "", 0, own_kernel=True)
SERVER = Flavour(
    f"{_PACKAGES},{_SERVER_PACKAGES}",
    # The kernel's ip= parameter, and the addresses that the agent sets, name the card eth0.
    f"{_ROOT} init=/sbin/init net.ifnames=0",
    SYSTEMD,
    _SERVER_LEAST_MEMORY,
    # That one has no control groups, without which systemd does not start.
    own_kernel=False,
)


def build(suite: str, flavour: Flavour, work: Path, cache: Path, progress: Progress) -> Parts:
    """Make the parts of a suite's image in a work directory."""
    require_own_ids("a Debian image")
    agent = agent_binary(cache)
    disk = work / "disk.raw"
    system = debian_system(suite, cache, progress, flavour.packages)
    _make_disk(system, agent, flavour, disk, work, progress)
    kernel = work / "kernel"
    own = current_kernel(cache) if flavour.own_kernel else None
    if own is not None:
        shutil.copyfile(own.path, kernel)
        return _parts(flavour, kernel, None, disk, own_kernel.LEAST_MEMORY)
    stock = distribution_kernel(cache, progress)
    shutil.copyfile(stock.kernel, kernel)
    loader = work / "initrd"
    write_loader(loader, stock.modules)
    return _parts(flavour, kernel, loader, disk, stock_kernel.LEAST_MEMORY)


def _parts(
    flavour: Flavour, kernel: Path, initrd: Path | None, disk: Path, least_memory: int
) -> Parts:
    return Parts(
        kernel,
        initrd,
        flavour.command_line,
        disk,
        "raw",
        DISK_SIZE,
        agent=True,
        least_memory=max(least_memory, flavour.least_memory),
        init=flavour.init,
    )


def debian_system(suite: str, cache: Path, progress: Progress, packages: str = _PACKAGES) -> Path:
    """A tar archive of a suite's system, from the cache if it is there.

    `packages` are its packages in addition to the essential ones, separated by commas.

    Raises:
        MissingProgramError: mmdebstrap is not installed.
        ImageError: mmdebstrap failed.
    """
    directory = cache / "debian"
    directory.mkdir(parents=True, exist_ok=True)
    contents = " ".join((packages, *_EXCLUDED, *_sources(suite)))
    digest = hashlib.sha256(contents.encode()).hexdigest()[:12]
    target = directory / f"{suite}-{digest}.tar"
    # A lock of its own: a system that is there does not wait for another one that is fetched.
    with locked(target.with_suffix(".lock"), progress):
        if not target.exists() or time.time() - target.stat().st_mtime > _FRESH:
            with work_directory(directory) as work:
                archive = work / "root.tar"
                _mmdebstrap(suite, packages, archive, progress)
                archive.rename(target)
    return target


def _mmdebstrap(suite: str, packages: str, archive: Path, progress: Progress) -> None:
    command: list[str | Path] = [
        require_program("mmdebstrap"),
        "--variant=minbase",
        "--format=tar",
        f"--include={packages}",
        "--aptopt=APT::Install-Recommends false",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in _EXCLUDED),
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        suite,
        archive,
        *_sources(suite),
    ]
    log = archive.with_suffix(".log")
    with log.open("w+") as output:
        running = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, text=True
        )
        try:
            _follow(running, f"Installing Debian {suite}", progress)
        except BaseException:
            running.terminate()
            running.wait()
            raise
        if running.returncode != 0:
            output.seek(0)
            said = [line.strip() for line in output if line.startswith(("E:", "W:"))]
            raise ImageError(
                f"making {suite} failed: {' '.join(said[-3:]) or 'no error was printed'}",
                hint="check that this host reaches the mirror in /etc/apt/sources.list",
            )


def _sources(suite: str) -> list[str]:
    """The lines of the guest's sources.list: the suite, its updates and its security fixes."""
    mirror, security = _mirror("/debian"), _mirror("/debian-security")
    return [
        f"deb {mirror} {suite} main",
        f"deb {mirror} {suite}-updates main",
        f"deb {security} {suite}-security main",
    ]


def _mirror(path: str) -> str:
    """The mirror in this host's apt configuration whose address ends in `path`, or Debian's own."""
    files = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    lines = [
        line
        for file in files
        if file.is_file()
        for line in file.read_text(errors="replace").splitlines()
        if not line.lstrip().startswith("#")
    ]
    addresses = (word for line in lines for word in line.split() if "://" in word)
    found = (address.rstrip("/") for address in addresses if address.rstrip("/").endswith(path))
    return next(found, f"http://deb.debian.org{path}")


def _make_disk(
    system: Path, agent: Path, flavour: Flavour, disk: Path, work: Path, progress: Progress
) -> None:
    progress("Writing the disk", 0, None)
    root = work / "root"
    root.mkdir()
    _run_as_root(["tar", "-xpf", system, "-C", root, "--numeric-owner", "--exclude=./dev/*"])
    additions = Path(tempfile.mkdtemp(dir=work))
    _add(additions, agent)
    if flavour.init == SYSTEMD:
        _add_units(additions)
    else:
        _add_shutdown_commands(additions)
    _open_to_all(additions)
    # Only root, or root of a user namespace, may make files that belong to root.
    _run_as_root(["cp", "-a", "--no-preserve=ownership", f"{additions}/.", root])
    with disk.open("wb") as file:
        file.truncate(DISK_SIZE)
    options = ["-L", "root", "-E", "lazy_itable_init=1"]
    _run_as_root(["mke2fs", "-q", "-t", "ext4", *options, "-d", root, disk])
    _run_as_root(["rm", "-rf", root])
    if disk.stat().st_blocks * 512 < MIB:
        raise ImageError("mke2fs wrote an empty disk")


def _add(additions: Path, agent: Path) -> None:
    """Add our files to the system: the agent, and a link to the kernel's name server."""
    target = additions / AGENT
    target.parent.mkdir(parents=True)
    shutil.copyfile(agent, target)
    target.chmod(0o755)
    (additions / "etc").mkdir()
    (additions / "etc" / "resolv.conf").symlink_to("/proc/net/pnp")
    (additions / "etc" / "hostname").write_text("cerne\n")
    (additions / "etc" / "hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")


def _open_to_all(additions: Path) -> None:
    """Let all users of the guest read what is added, also if this user's umask does not."""
    for path in (additions, *additions.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.name == Path(AGENT).name else 0o644)


def _add_shutdown_commands(additions: Path) -> None:
    """Add what asks the agent, where that is the first process, to end the machine."""
    for command in ("poweroff", "halt", "reboot"):
        (additions / AGENT).with_name(command).symlink_to("cerne-agent")


def _add_units(additions: Path) -> None:
    """Add the agent's unit, and a root shell on the console, where Enter asks for it."""
    units = additions / "etc" / "systemd" / "system"
    unit = units / UNIT.name
    console = units / "serial-getty@ttyS0.service.d"
    console.mkdir(parents=True)
    shutil.copyfile(UNIT, unit)
    (console / "cerne.conf").write_text(_CONSOLE)
    for target in _UNIT_TARGETS:
        wants = units / f"{target}.wants"
        wants.mkdir()
        (wants / unit.name).symlink_to(f"../{unit.name}")
    # Empty, so that each machine gets an id of its own at its first boot (machine-id(5)).
    (additions / "etc" / "machine-id").touch()


def _run_as_root(command: list[str | Path]) -> None:
    # The full path, because mke2fs is rarely in the PATH of an ordinary user.
    program = require_program(str(command[0]))
    done = subprocess.run(
        [*as_root(), program, *command[1:]],
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIMEOUT,
    )
    if done.returncode != 0:
        raise ImageError(f"{command[0]} failed: {done.stderr.strip()[-300:]}")


def _follow(process: subprocess.Popen[str], what: str, progress: Progress) -> None:
    for seconds in range(int(_TIMEOUT)):
        progress(what, seconds, None)
        try:
            process.wait(1.0)
        except subprocess.TimeoutExpired:
            continue
        return
    process.kill()
    raise ImageError(f"{what} took longer than {_TIMEOUT:g} s")
