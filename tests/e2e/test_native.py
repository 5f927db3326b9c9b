"""The native engine, end to end: a Linux on /dev/kvm with nothing of QEMU around.

It is booted once, for a template: where the host emulates guests' kernel code that takes half a
minute, and whatever starts from the template less than a second.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.e2e.conftest import KILL_INIT, Cerne, available

from cerne.host.programs import find_program, install_command
from cerne.units import MIB

_LINUX = ("--engine", "native", "--memory", "128M")
_WHO = ("sh", "-c", "hostname; cat /sys/class/net/eth0/address; head -c 16 /dev/urandom | od -tx1")


@pytest.fixture(scope="module")
def _warm(_built: Cerne, kvm_device: Path, own_kernel: None) -> Iterator[Cerne]:
    del _built.environment["CERNE_TEMPLATES"]
    _built.ok("image", "warm", *_LINUX, "--timeout", "250s", "tiny", timeout=280)
    yield _built
    _built.environment["CERNE_TEMPLATES"] = "never"


@pytest.fixture
def native(_warm: Cerne, cerne: Cerne) -> Cerne:
    """The command line, and a native machine ``n``."""
    assert cerne.ok("run", "-d", "--name", "n", *_LINUX, "tiny") == "n\n"
    return cerne


@pytest.mark.timeout(290)
def test_a_life(native: Cerne) -> None:
    machine = native.machine("n")
    assert (machine["state"], machine["engine"]) == ("running", "native")
    assert native.ok("exec", "n", "uname", "-s") == "Linux\n"
    assert native("exec", "n", "--", "sh", "-c", "exit 5").returncode == 5
    counted = native.ok("exec", "-i", "n", "--", "wc", "-c", stdin=bytes(100_000))
    assert counted.strip() == "100000"
    native.ok("pause", "n")
    assert native.machine("n")["state"] == "paused"
    native.ok("resume", "n")
    assert native.ok("exec", "n", "echo", "awake") == "awake\n"
    (used,) = json.loads(native.ok("stats", "--json"))
    assert used["memory_bytes"] == 128 << 20
    status = Path(f"/proc/{native.machine('n')['pid']}/status").read_text()
    assert "NoNewPrivs:\t1" in status
    assert "Uid:\t0" not in status
    native.ok("stop", "--timeout", "60s", "n")
    assert native.machine("n")["reason"] == "shut down"


def _fetched(address: str) -> bytes:
    """What is there; nothing while the guest's server does not answer yet."""
    try:
        with urllib.request.urlopen(address, timeout=20) as answer:
            return bytes(answer.read())
    except OSError:
        return b""


def test_its_network_goes_both_ways(
    native: Cerne, port: int, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    native.ok("run", "-d", "--name", "web", "--publish", f"{port}:80", *_LINUX, "tiny")
    native.ok("exec", "web", "--", "sh", "-c", "echo hi >/tmp/f; httpd -p 80 -h /tmp")
    eventually(lambda: _fetched(f"http://127.0.0.1:{port}/f") == b"hi\n")
    fetched = native.ok("exec", "n", "--", "wget", "-q", "-O-", f"http://10.0.2.2:{port}/f")
    assert fetched == "hi\n"


@pytest.fixture(scope="module")
def vsock_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guest's program that joins its standard streams to a vsock, of tests/guests/vsock.c."""
    compiler = find_program("musl-gcc") or find_program("gcc")
    if compiler is None:
        pytest.skip(f"there is no C compiler: {install_command('musl-gcc')}")
    program = tmp_path_factory.mktemp("vsock") / "vsock"
    source = Path(__file__).parent.parent / "guests" / "vsock.c"
    subprocess.run([compiler, "-static", "-Os", "-o", program, source], check=True)
    return program


def _in_background(native: Cerne, name: str, script: str) -> None:
    native.ok("exec", name, "--", "sh", "-c", f"({script}) </dev/null >/dev/null 2>&1 &")


def _called(native: Cerne, name: str, port: int) -> socket.socket:
    """A connection to a port of the guest's, once it answers; in the words of docs/vsock.md."""
    path = Path(str(native.machine(name)["vsock"])) / "guest.sock"
    while True:
        caller = socket.socket(socket.AF_UNIX)
        caller.settimeout(60)
        caller.connect(str(path))
        caller.sendall(b"CONNECT %d\n" % port)
        if caller.recv(32).startswith(b"OK "):
            return caller
        caller.close()
        time.sleep(0.1)


@pytest.mark.timeout(290)
def test_sockets_lead_into_the_guest_and_out_of_it(
    native: Cerne, vsock_program: Path, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    data = random.Random(1).randbytes(1 << 20)
    digest = hashlib.sha256(data).hexdigest()
    native.ok("cp", str(vsock_program), "n:/vsock")
    assert "listens at vsock port 100" in native.refused("vsock", "n", "100", status=8)
    _in_background(native, "n", "/vsock 100 >/tmp/got")
    eventually(lambda: native("vsock", "n", "100", stdin=data).returncode == 0)
    assert native.ok("exec", "n", "sha256sum", "/tmp/got").split()[0] == digest
    _in_background(native, "n", "until /vsock -h 200 </tmp/got; do sleep 0.1; done")
    assert hashlib.sha256(native("vsock", "--listen", "n", "200").stdout).hexdigest() == digest


@pytest.mark.timeout(290)
def test_a_forked_guest_is_told_that_its_connections_are_its_parents(
    native: Cerne, vsock_program: Path, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    native.ok("cp", str(vsock_program), "n:/vsock")
    _in_background(native, "n", "/vsock 300 >/tmp/got; echo ended $? >/tmp/end")
    with _called(native, "n", 300) as link:
        link.sendall(b"before ")
        eventually(lambda: native.ok("exec", "n", "cat", "/tmp/got") == "before ")
        native.ok("fork", "n", "--name", "child")
        eventually(lambda: native("exec", "child", "cat", "/tmp/end").stdout == b"ended 1\n")
        link.sendall(b"after")
    eventually(lambda: native("exec", "n", "cat", "/tmp/end").stdout == b"ended 0\n")
    assert native.ok("exec", "n", "cat", "/tmp/got") == "before after"
    assert native.ok("exec", "child", "cat", "/tmp/got") == "before "
    _in_background(native, "child", "/vsock 300 >/tmp/got")
    eventually(lambda: native("vsock", "child", "300", stdin=b"its own").returncode == 0)
    assert native.ok("exec", "child", "cat", "/tmp/got") == "its own"
    assert native.ok("exec", "n", "cat", "/tmp/got") == "before after"


def test_forks_are_machines_of_their_own(native: Cerne) -> None:
    native.ok("exec", "n", "--", "sh", "-c", "echo before >/tmp/f")
    assert native.ok("fork", "n", "--count", "2").split() == ["n-1", "n-2"]
    native.ok("exec", "n", "--", "sh", "-c", "echo after >/tmp/f")
    said = [native.ok("exec", name, "--", *_WHO).splitlines() for name in ("n", "n-1", "n-2")]
    assert [lines[0] for lines in said] == ["n", "n-1", "n-2"]
    assert len({lines[1] for lines in said}) == len({lines[2] for lines in said}) == 3
    native.ok("fork", "n-1", "--name", "grandchild")
    os.kill(int(str(native.machine("n")["pid"])), signal.SIGKILL)
    native.ok("kill", "n-1")
    for name in ("n-2", "grandchild"):
        assert native.ok("exec", name, "cat", "/tmp/f") == "before\n"
    assert native.machine("n")["state"] == "failed"


def test_a_panic_fails_the_machine_with_the_kernels_words(native: Cerne) -> None:
    native("exec", "n", "--", "sh", "-c", KILL_INIT)
    assert native.ok("wait", "--timeout", "200s", "n") == "failed\n"
    reason = str(native.machine("n")["reason"])
    assert reason.startswith("the guest's kernel panicked: Attempted to kill init!")


@pytest.mark.slow
@pytest.mark.timeout(290)
def test_what_came_from_a_template_reboots_in_place(native: Cerne) -> None:
    before = native.machine("n")
    script = "echo lost >/tmp/f; reboot; sleep 1000"
    assert native("exec", "n", "--", "sh", "-c", script, timeout=280).returncode == 125
    assert native.ok("exec", "n", "--", "sh", "-c", "ls /tmp; hostname") == "n\n"
    assert native.ok("exec", "n", "--", "ip", "-o", "-4", "addr", "show", "eth0") != ""
    after = native.machine("n")
    assert (after["state"], after["pid"]) == ("running", before["pid"])
    native.ok("fork", "n", "--name", "child")
    assert native.ok("exec", "child", "hostname") == "child\n"


@pytest.mark.timeout(290)
def test_a_disk_comes_and_goes(native: Cerne) -> None:
    assert native.ok("disk", "attach", "n", "8M") == "data1\n"
    # Where the host emulates guests' kernels they have no ACPI, and look for what is new when told.
    script = "[ -e /sys/block/vda ] || echo 1 >/sys/bus/pci/rescan; cat /sys/block/vda/serial"
    assert native.ok("exec", "n", "--", "sh", "-c", script) == "data1"
    native.ok("exec", "n", "--", "sh", "-c", "echo mine >/dev/vda; sync")
    native.ok("fork", "n", "--name", "child")
    native.ok("exec", "n", "--", "sh", "-c", "echo more >/dev/vda; sync")
    assert native.ok("exec", "child", "head", "-c", "5", "/dev/vda") == "mine\n"
    native.ok("exec", "n", "--", "sh", "-c", "echo 1 >/sys/bus/pci/devices/0000:00:18.0/remove")
    assert native.ok("exec", "n", "ls", "/sys/block") == ""
    (kept,) = native.ok("disk", "detach", "--force", "n", "data1").split()
    assert native.ok("exec", "n", "echo", "well") == "well\n"
    native.ok("disk", "attach", "n", kept, "--serial", "again")
    assert "detach n again" in native.refused("suspend", "n", status=2)


def test_it_goes_back_and_is_put_to_sleep(native: Cerne) -> None:
    native.ok("exec", "n", "--", "sh", "-c", "echo kept >/tmp/f")
    native.ok("snapshot", "create", "n", "then")
    native.ok("exec", "n", "--", "sh", "-c", "echo lost >/tmp/f")
    native.ok("snapshot", "restore", "then")
    assert native.ok("exec", "n", "cat", "/tmp/f") == "kept\n"
    native.ok("suspend", "n")
    assert native.machine("n")["pid"] is None
    native.ok("wake", "n")
    assert native.ok("exec", "n", "cat", "/tmp/f") == "kept\n"
    native.ok("snapshot", "rm", "then")


def test_a_balloon_grows_is_forked_and_shrinks(
    native: Cerne, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    def guest_memory(name: str = "n") -> int:
        (found,) = json.loads(native.ok("stats", "--json", name))
        return int(found["guest_memory_bytes"])

    free = available(native, "n")
    native.ok("set", "n", "--balloon", "112M")
    eventually(lambda: guest_memory() == 112 * MIB)
    assert available(native, "n") < free - 12 * MIB
    native.ok("fork", "n", "--name", "child")
    assert guest_memory("child") == 112 * MIB
    native.ok("set", "n", "--balloon", "128M")
    eventually(lambda: guest_memory() == 128 * MIB)
    assert available(native, "n") > free - 4 * MIB


@pytest.mark.slow
@pytest.mark.timeout(290)
def test_two_processors_run_pause_and_fork(
    cerne: Cerne, kvm_device: Path, own_kernel: None
) -> None:
    options = ("--engine", "native", "--memory", "128M", "--cpus", "2", "--timeout", "250s")
    cerne.ok("run", "-d", "--name", "n", *options, "tiny", timeout=280)
    assert cerne.ok("exec", "n", "nproc") == "2\n"
    cerne.ok("pause", "n")
    cerne.ok("resume", "n")
    cerne.ok("fork", "n", "--name", "child")
    for name in ("n", "child"):
        assert cerne.ok("exec", name, "--", "sh", "-c", "true & nproc; wait") == "2\n"


@pytest.mark.timeout(290)
def test_directories_of_the_host_are_mounted(
    cerne: Cerne,
    kvm_device: Path,
    own_kernel: None,
    tmp_path: Path,
    eventually: Callable[[Callable[[], bool]], None],
) -> None:
    if find_program("virtiofsd") is None:
        pytest.skip(f"virtiofsd is not installed: {install_command('virtiofsd')}")
    for name in ("rw", "ro"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_text("from the host\n")
    mounts = ("--mount", f"{tmp_path}/rw:/rw", "--mount", f"{tmp_path}/ro:/ro:ro")
    cerne.ok("run", "-d", "--name", "n", *_LINUX, "--timeout", "250s", *mounts, "tiny", timeout=280)
    script = "cat /rw/f /ro/f; echo from the guest >/rw/g; umount /ro"
    script += "; mount -t virtiofs -o rw share1 /ro && echo x >/ro/f; rm /ro/f; true"
    assert cerne.ok("exec", "n", "--", "sh", "-c", script) == "from the host\n" * 2
    assert (tmp_path / "rw" / "g").read_text() == "from the guest\n"
    assert (tmp_path / "ro" / "f").read_text() == "from the host\n"
    for command in (("fork", "n"), ("snapshot", "create", "n"), ("suspend", "n")):
        assert "--mount" in cerne.refused(*command)
    assert cerne.ok("exec", "n", "cat", "/rw/g") == "from the guest\n"
    cerne.ok("kill", "n")
    eventually(lambda: not _mentioning(tmp_path))


def _mentioning(path: Path) -> list[int]:
    """Processes with this path in their command lines."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.fsencode(path) in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_debian_forks_with_its_disk(cerne: Cerne, kvm_device: Path, own_kernel: None) -> None:
    cerne.ok("image", "build", "debian:12", timeout=280)
    options = ("--engine", "native", "--memory", "256M", "--timeout", "280s")
    cerne.ok("run", "-d", "--name", "d", *options, "debian:12", timeout=300)
    cerne.ok("exec", "d", "--", "sh", "-c", "echo before >/root/f; sync")
    cerne.ok("fork", "d", "--count", "2")
    for name in ("d", "d-1", "d-2"):
        assert cerne.ok("exec", name, "cat", "/root/f") == "before\n"
        cerne.ok("exec", name, "--", "sh", "-c", f"echo {name} >/root/f; sync")
    for name in ("d", "d-1", "d-2"):
        cerne.ok("stop", "--timeout", "100s", name)
    for name in ("d", "d-1", "d-2"):
        disk = cerne.home / "machines" / str(cerne.machine(name)["id"]) / "root.qcow2"
        subprocess.run(["qemu-img", "check", "-q", str(disk)], check=True)
    cerne.ok("start", "--timeout", "280s", "d-1", timeout=300)
    assert cerne.ok("exec", "d-1", "cat", "/root/f") == "d-1\n"
