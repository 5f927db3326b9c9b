"""Programs of other projects that Cerne runs, and the command that installs them.

One table has the package of each program in each family of distributions.
"""

from __future__ import annotations

import os
import shutil
from functools import cache
from pathlib import Path

from cerne.errors import MissingProgramError

# program: (Debian and Ubuntu, Fedora and RHEL, Arch, openSUSE, Alpine)
_PACKAGES: dict[str, tuple[str, str, str, str, str]] = {
    "qemu-system-x86_64": (
        "qemu-system-x86",
        "qemu-system-x86-core",
        "qemu-system-x86",
        "qemu-x86",
        "qemu-system-x86_64",
    ),
    "qemu-img": ("qemu-utils", "qemu-img", "qemu-img", "qemu-tools", "qemu-img"),
    "qemu-storage-daemon": (
        "qemu-system-common",
        "qemu-img",
        "qemu-storage-daemon",
        "qemu-tools",
        "qemu-storage-daemon",
    ),
    "mmdebstrap": ("mmdebstrap", "mmdebstrap", "mmdebstrap", "mmdebstrap", "mmdebstrap"),
    "mke2fs": ("e2fsprogs", "e2fsprogs", "e2fsprogs", "e2fsprogs", "e2fsprogs"),
    "busybox": ("busybox-static", "busybox", "busybox", "busybox-static", "busybox-static"),
    "musl-gcc": ("musl-tools", "musl-gcc", "musl", "musl-devel", "musl-dev"),
    "gcc": ("gcc", "gcc", "gcc", "gcc", "gcc"),
    "objcopy": ("binutils", "binutils", "binutils", "binutils", "binutils"),
    "tar": ("tar", "tar", "tar", "tar", "tar"),
    "apt-get": ("apt", "apt", "apt", "apt", "apt"),
    "apt-cache": ("apt", "apt", "apt", "apt", "apt"),
    "dpkg-deb": ("dpkg", "dpkg", "dpkg", "dpkg", "dpkg"),
    "make": ("make", "make", "make", "make", "make"),
    "flex": ("flex", "flex", "flex", "flex", "flex"),
    "bison": ("bison", "bison", "bison", "bison", "bison"),
    "bc": ("bc", "bc", "bc", "bc", "bc"),
    # Debian 12 has another virtiofsd in its QEMU package.
    "virtiofsd": ("virtiofsd", "virtiofsd", "virtiofsd", "virtiofsd", "virtiofsd"),
    "setpriv": ("util-linux", "util-linux", "util-linux", "util-linux", "setpriv"),
    "setsid": ("util-linux", "util-linux", "util-linux", "util-linux", "setsid"),
    "passt": ("passt", "passt", "passt", "passt", "passt"),
    "pasta": ("passt", "passt", "passt", "passt", "passt"),
    "nft": ("nftables", "nftables", "nftables", "nftables", "nftables"),
    "dnsmasq": ("dnsmasq-base", "dnsmasq", "dnsmasq", "dnsmasq", "dnsmasq-nftset"),
    "ip": ("iproute2", "iproute", "iproute2", "iproute2", "iproute2"),
    "newuidmap": ("uidmap", "shadow-utils", "shadow", "shadow", "shadow-uidmap"),
    "newgidmap": ("uidmap", "shadow-utils", "shadow", "shadow", "shadow-uidmap"),
    "unshare": ("util-linux", "util-linux", "util-linux", "util-linux", "util-linux-misc"),
    "depmod": ("kmod", "kmod", "kmod", "kmod", "kmod"),
    "iasl": ("acpica-tools", "acpica-tools", "acpica", "acpica", "acpica"),
}

_FAMILIES = (
    (("debian", "ubuntu"), "apt-get install -y"),
    (("fedora", "rhel", "centos"), "dnf install -y"),
    (("arch",), "pacman -S --noconfirm"),
    (("suse", "opensuse"), "zypper install -y"),
    (("alpine",), "apk add"),
)


def find_program(name: str) -> Path | None:
    """The path of a program, or None if it is not installed."""
    found = shutil.which(name, path=_search_path())
    return None if found is None else Path(found)


def require_program(name: str) -> Path:
    """The path of a program.

    Raises:
        MissingProgramError: it is not installed; the hint is the command that installs it.
    """
    found = find_program(name)
    if found is None:
        raise MissingProgramError(f"{name} is not installed", hint=install_command(name))
    return found


def install_command(*programs: str) -> str:
    """The command that installs these programs on this distribution."""
    family = _family()
    packages = dict.fromkeys(_PACKAGES[name][family] for name in programs)
    return f"sudo {_FAMILIES[family][1]} {' '.join(packages)}"


def _search_path() -> str:
    # A user's PATH often lacks the sbin directories, where mke2fs and depmod are; virtiofsd is in
    # neither, because other programs run it.
    programs = ("/usr/libexec", "/usr/lib/qemu", "/usr/lib")
    return os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin", *programs))


@cache
def _family() -> int:
    try:
        lines = Path("/etc/os-release").read_text().splitlines()
    except FileNotFoundError:
        return 0
    release = dict(line.split("=", 1) for line in lines if "=" in line)
    words = f"{release.get('ID', '')} {release.get('ID_LIKE', '')}".replace('"', "").split()
    for index, (names, _) in enumerate(_FAMILIES):
        if any(word.split("-")[0] in names for word in words):
            return index
    return 0
