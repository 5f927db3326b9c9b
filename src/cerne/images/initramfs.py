"""The initramfs of our images: busybox, the agent, and the modules that a stock kernel needs.

With Cerne's own kernel the agent is the first process, and the kernel configures the network by its
``ip=`` parameter. With a distribution's kernel a script loads the modules first, configures the
network from the same parameter, and starts the agent, in the disk's root if there is one.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

from cerne.errors import HostError
from cerne.host.programs import install_command, require_program
from cerne.images.cpio import CpioWriter

AGENT = "usr/sbin/cerne-agent"

_APPLETS = (
    "[ awk base64 basename cat chmod chown cp cut date dd df diff dirname dmesg du echo env "
    "expr false find free grep gunzip gzip head hexdump hostname httpd id ifconfig ip kill "
    "killall less ln ls md5sum mkdir mktemp mount mv nc netstat nohup nproc nslookup od pgrep "
    "pidof ping pkill poweroff printenv printf ps pwd readlink realpath reboot rm rmdir sed seq "
    "sh sha256sum sleep sort stat stty sync sysctl tail tar tee test timeout top touch tr true "
    "umount uname uniq uptime vi wc wget which xargs"
)
"""Commands with a path of their own, an inode each; busybox's shell knows the others."""
_PASSWD = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"
_GROUP = "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"
_OS_RELEASE = 'ID=cerne-tiny\nNAME="Cerne tiny"\nPRETTY_NAME="Cerne tiny (busybox)"\n'
_HOSTS = "127.0.0.1 localhost\n::1 localhost\n"
_PROFILE = "export PS1='\\u@\\h:\\w\\$ '\n"

_MODULES_SCRIPT = """\
#!/bin/sh
# Does what Cerne's own kernel does without it: drivers, network, root; then starts the agent.
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in @MODULES@; do insmod "/modules/$module.ko"; done
root=
init=/sbin/init
read -r line < /proc/cmdline
for word in $line; do
    case $word in
    root=*) root=${word#root=} ;;
    init=*) init=${word#init=} ;;
    ip=*)
        IFS=: read -r address _ gateway mask name device _ dns _ <<PARAMETER
${word#ip=}
PARAMETER
        hostname "$name"
        ifconfig lo 127.0.0.1
        [ -n "$address" ] && ifconfig "$device" "$address" netmask "$mask" &&
            route add default gw "$gateway"
        ;;
    esac
done
resolver=/etc/resolv.conf
if [ -n "$root" ]; then
    tries=0
    until [ -b "$root" ] || [ $tries = 100 ]; do usleep 20000; tries=$((tries + 1)); done
    mount -t ext4 "$root" /newroot
    resolver=/newroot/etc/resolv.conf
fi
rm -f "$resolver"
[ -n "$dns" ] && echo "nameserver $dns" > "$resolver"
if [ -n "$root" ]; then
    umount /proc /sys
    mount -o move /dev /newroot/dev
    # The shell would look for it in /proc/self/exe.
    exec /usr/bin/busybox switch_root /newroot "$init"
fi
exec /usr/sbin/cerne-agent
"""


def write_tiny(path: Path, agent: Path, modules: Sequence[Path]) -> None:
    """Write the initramfs of the tiny image, with a stock kernel's modules if there are any."""
    with path.open("wb") as file:
        archive = CpioWriter(file)
        _add_base(archive)
        archive.file(AGENT, agent.read_bytes(), 0o755)
        for name, text in (
            ("passwd", _PASSWD),
            ("group", _GROUP),
            ("os-release", _OS_RELEASE),
            ("hosts", _HOSTS),
            ("profile", _PROFILE),
        ):
            archive.file(f"etc/{name}", text.encode())
        if modules:
            _add_modules(archive, modules)
        else:
            archive.link("init", AGENT)
            archive.link("etc/resolv.conf", "/proc/net/pnp")
        archive.close()


def write_loader(path: Path, modules: Sequence[Path]) -> None:
    """Write an initramfs that loads a stock kernel's modules and then starts the disk's root."""
    with path.open("wb") as file:
        archive = CpioWriter(file)
        _add_base(archive)
        archive.directory("newroot")
        _add_modules(archive, modules)
        archive.close()


def _add_base(archive: CpioWriter) -> None:
    for directory in ("proc", "sys", "dev", "run", "root", "mnt", "etc", "usr/bin"):
        archive.directory(directory)
    archive.directory("tmp", 0o1777)
    for link in ("bin", "sbin"):
        archive.link(link, "usr/bin" if link == "bin" else "usr/sbin")
    archive.device("dev/console", 5, 1)
    archive.device("dev/null", 1, 3, 0o666)
    archive.file("usr/bin/busybox", _busybox(), 0o755)
    for applet in _APPLETS.split():
        archive.link(f"usr/bin/{applet}", "busybox")


def _add_modules(archive: CpioWriter, modules: Sequence[Path]) -> None:
    for module in modules:
        archive.file(f"modules/{module.name}", module.read_bytes())
    names = " ".join(module.stem for module in modules)
    archive.file("init", _MODULES_SCRIPT.replace("@MODULES@", names).encode(), 0o755)


def _busybox() -> bytes:
    content = require_program("busybox").read_bytes()
    if not _is_static(content):
        raise HostError(
            "this host's busybox needs shared libraries, which a guest does not have",
            hint=install_command("busybox"),
        )
    return content


def _is_static(elf: bytes) -> bool:
    """Whether a 64-bit ELF program names no interpreter (PT_INTERP) to load it."""
    if elf[:5] != b"\x7fELF\x02" or len(elf) < 64:
        return False
    offset, size, count = (
        struct.unpack_from("<Q", elf, 32)[0],
        *struct.unpack_from("<HH", elf, 54),
    )
    headers = (elf[offset + index * size :][:4] for index in range(count))
    return all(header != b"\x03\0\0\0" for header in headers)
