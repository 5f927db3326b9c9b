"""What only the engine `native` has, or has by programs of its own."""

from __future__ import annotations

import hashlib
import json
import random
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.e2e.conftest import Cerne, Engine, available, only_native
from tests.processes import naming
from tests.waiting import PATIENCE

from cerne.host.programs import find_program, install_command
from cerne.units import MIB

pytestmark = only_native


@pytest.fixture
def native(cerne: Cerne, engine: Engine) -> Cerne:
    """The command line, and a native machine ``n``."""
    assert cerne.ok("run", "-d", "--name", "n", *engine.options, "tiny") == "n\n"
    return cerne


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
        caller.settimeout(PATIENCE)
        caller.connect(str(path))
        caller.sendall(b"CONNECT %d\n" % port)
        if caller.recv(32).startswith(b"OK "):
            return caller
        caller.close()
        time.sleep(0.1)


@pytest.mark.slow_if_emulated
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


@pytest.mark.slow_if_emulated
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


@pytest.mark.slow_if_emulated
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


@pytest.mark.slow_if_emulated
def test_directories_of_the_host_are_mounted(
    cerne: Cerne,
    engine: Engine,
    mounting: None,
    tmp_path: Path,
    eventually: Callable[[Callable[[], bool]], None],
) -> None:
    for name in ("rw", "ro"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_text("from the host\n")
    mounts = ("--mount", f"{tmp_path}/rw:/rw", "--mount", f"{tmp_path}/ro:/ro:ro")
    run = ("run", "-d", "--name", "n", *engine.options, "--timeout", "250s")
    cerne.ok(*run, *mounts, "tiny", timeout=280)
    script = "cat /rw/f /ro/f; echo from the guest >/rw/g; umount /ro"
    script += "; mount -t virtiofs -o rw share1 /ro && echo x >/ro/f; rm /ro/f; true"
    assert cerne.ok("exec", "n", "--", "sh", "-c", script) == "from the host\n" * 2
    assert (tmp_path / "rw" / "g").read_text() == "from the guest\n"
    assert (tmp_path / "ro" / "f").read_text() == "from the host\n"
    for command in (("fork", "n"), ("snapshot", "create", "n"), ("suspend", "n")):
        assert "--mount" in cerne.refused(*command)
    assert cerne.ok("exec", "n", "cat", "/rw/g") == "from the guest\n"
    cerne.ok("kill", "n")
    eventually(lambda: naming(tmp_path) == [])


@pytest.mark.slow_if_emulated
def test_a_debian_forks_with_its_disk(cerne: Cerne, engine: Engine, no_templates: None) -> None:
    cerne.ok("image", "build", "debian:12-minimal", timeout=280)
    options = ("--engine", engine.name, "--memory", "256M", "--timeout", "280s")
    cerne.ok("run", "-d", "--name", "d", *options, "debian:12-minimal", timeout=300)
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
