"""A host of its own for one trial: ``python -m tests.network.lab.host USER TRIAL DIRECTORY``.

It has an uplink to a network outside with servers (`tests.network.lab.outside`), and a name server
there. Root runs the trial, or a user without privileges, who may open /dev/net/tun as on other
hosts.
It ends with the status `UNABLE` and the reason if this machine cannot make such a host.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

from tests.network.lab import outside

from cerne.vmm.jail import system
from cerne.vmm.jail.system import Mount, Namespace

UNABLE = 77
USER = 1000
_OUTSIDE = "outside"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def _outside(uplink: str) -> subprocess.Popen[str]:
    """Start the network outside, with the other end of the uplink."""
    program = [sys.executable, "-m", "tests.network.lab.outside"]
    addresses = [f"{outside.ADDRESS4}/24", f"{outside.OTHER4}/24", f"{outside.METADATA}/32"]
    addresses.append(f"{outside.ADDRESS6}/64")
    commands = [
        f"ip addr add {address} dev {uplink} nodad"
        if ":" in address
        else f"ip addr add {address} dev {uplink}"
        for address in addresses
    ]
    script = "; ".join(
        [
            "set -e",
            "read go",
            "ip link set lo up",
            f"ip link set {uplink} up",
            *commands,
            'exec "$@"',
        ]
    )
    process = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", f"echo made; {script}", "sh", *program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "made\n"
    _ip("link", "set", uplink, "netns", str(process.pid))
    process.stdin.write("go\n")
    process.stdin.flush()
    assert process.stdout.readline() == "ready\n"
    return process


def _network() -> subprocess.Popen[str]:
    _ip("link", "set", "lo", "up")
    _ip("link", "add", "up0", "type", "veth", "peer", "name", "far0")
    process = _outside("far0")
    _ip("addr", "add", f"{outside.HOST4}/24", "dev", "up0")
    _ip("addr", "add", f"{outside.HOST6}/64", "dev", "up0", "nodad")
    _ip("link", "set", "up0", "up")
    _ip("route", "add", "default", "via", outside.ADDRESS4)
    _ip("-6", "route", "add", "default", "via", outside.ADDRESS6)
    return process


def _mounts(directory: Path) -> None:
    """Have the name server of outside, and devices and a Python that the user may use."""
    system.mount("none", "/", "", Mount.PRIVATE | Mount.RECURSIVE)
    system.mount("none", str(directory), "tmpfs", 0, "mode=755")
    resolv = directory / "resolv.conf"
    resolv.write_text(f"nameserver {outside.ADDRESS4}\n")
    system.mount(str(resolv), str(Path("/etc/resolv.conf").resolve()), "", Mount.BIND)
    tun = directory / "tun"
    os.mknod(tun, stat.S_IFCHR | 0o666, os.makedev(10, 200))
    tun.chmod(0o666)
    system.mount(str(tun), "/dev/net/tun", "", Mount.BIND)
    homes = directory / "homes"
    homes.mkdir(mode=0o755)
    homes.chmod(0o777)


def _show(prefix: Path, directory: Path) -> None:
    """Have this Python where the user finds it, though a directory above is closed to others."""
    above = [path for path in reversed(prefix.parents) if not path.stat().st_mode & stat.S_IXOTH]
    if not above:
        return
    kept = directory / "python"
    kept.mkdir()
    system.mount(str(prefix), str(kept), "", Mount.BIND | Mount.RECURSIVE)
    system.mount("none", str(above[0]), "tmpfs", 0, "mode=755")
    prefix.mkdir(parents=True)
    system.mount(str(kept), str(prefix), "", Mount.BIND | Mount.RECURSIVE)


def main() -> None:
    """Make the host, and run the trial in it."""
    user, trial, directory = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    try:
        system.unshare(Namespace.NET | Namespace.MOUNT)
        _mounts(directory)
    except OSError as error:
        print(f"making namespaces and mounting in them failed: {error.strerror}")
        sys.exit(UNABLE)
    outer = _network()
    command = [sys.executable, "-m", "tests.network.lab.trials", trial, str(directory / "homes")]
    if user:
        _show(Path(sys.base_prefix), directory)
        as_user = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        command = [*as_user, *command]
        tried = subprocess.run([*as_user, sys.executable, "-c", "import cerne"], check=False)
        if tried.returncode:
            print("a user without privileges may not read this Python")
            outer.kill()
            sys.exit(UNABLE)
    done = subprocess.run(command, check=False)
    outer.kill()
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
