"""`cerne run`, `exec`, `shell` and `cp`: an operating system with one command."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest
from tests.e2e.conftest import Cerne, Engine
from tests.waiting import PATIENCE


@pytest.fixture
def web(cerne: Cerne, engine: Engine) -> str:
    """A running machine."""
    return cerne.ok("run", "--detach", "--name", "web", *engine.options, "tiny").strip()


def test_a_linux_says_its_name_and_is_gone(cerne: Cerne, engine: Engine) -> None:
    said = cerne.ok("run", "--rm", *engine.options, "tiny", "--", "uname", "-a")
    assert said.startswith("Linux ")
    assert cerne.names() == []
    assert cerne.leftovers() == []


def test_the_status_is_the_commands_own(cerne: Cerne, engine: Engine) -> None:
    script = "echo out; echo err >&2; exit 7"
    done = cerne("run", "--rm", *engine.options, "tiny", "--", "sh", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")


def test_commands_in_a_running_machine(cerne: Cerne, web: str) -> None:
    assert cerne.ok("exec", web, "--", "cat", "/proc/sys/kernel/hostname").strip() == "web"
    environment = cerne.ok("exec", "-e", "COLOUR=deep blue", web, "--", "sh", "-c", "echo $COLOUR")
    assert environment == "deep blue\n"
    assert cerne.ok("exec", "--workdir", "/tmp", web, "pwd") == "/tmp\n"
    assert (
        cerne.ok("exec", "-i", web, "--", "wc", "-c", stdin=b"x" * 1_000_000).strip() == "1000000"
    )
    killed = cerne("exec", web, "--", "sh", "-c", "kill -TERM $$")
    assert killed.returncode == 128 + 15
    missing = cerne("exec", web, "--", "no-such-program")
    assert missing.returncode == 127
    assert cerne("exec", web, "--", "/etc/passwd").returncode == 126
    assert b"no-such-program" in missing.stderr


@pytest.mark.slow_if_emulated
def test_commands_run_side_by_side(cerne: Cerne, web: str) -> None:
    running = [cerne.begin("exec", web, "--", "sh", "-c", f"sleep 1; echo {n}") for n in range(4)]
    assert [process.communicate(timeout=PATIENCE) for process in running] == [
        (f"{n}\n".encode(), b"") for n in range(4)
    ]


@pytest.mark.slow_if_emulated
def test_a_terminal_session(cerne: Cerne, web: str) -> None:
    terminal = pexpect.spawn(
        cerne.program,
        ["shell", web],
        env=cerne.environment,
        dimensions=(31, 97),
        timeout=PATIENCE,
        encoding="utf-8",
    )
    terminal.expect("[#$] ")
    terminal.sendline("stty size")
    terminal.expect("31 97")
    terminal.setwinsize(42, 111)
    terminal.expect("[#$] ")
    terminal.sendline("sleep 0.2; stty size")
    terminal.expect("42 111")
    terminal.expect("[#$] ")
    terminal.sendline("echo $((6 * 7)); cat")
    terminal.expect("42\r\n")
    terminal.sendline("seen")
    terminal.expect("seen\r\nseen")
    terminal.sendcontrol("c")
    terminal.expect("[#$] ")
    terminal.sendline("exit 3")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 3


def test_the_console_is_left_by_its_key(cerne: Cerne, web: str) -> None:
    terminal = pexpect.spawn(
        cerne.program, ["console", web], env=cerne.environment, timeout=PATIENCE, encoding="utf-8"
    )
    terminal.expect("leaves it")
    terminal.sendline("")
    terminal.sendline("echo $((6 * 7))")
    terminal.expect("42")
    terminal.send("\x1d")
    terminal.expect("Left web")
    terminal.expect(pexpect.EOF)
    assert cerne.machine(web)["state"] == "running"


@pytest.mark.slow_if_emulated
def test_files_go_in_and_out_unharmed(
    cerne: Cerne, engine: Engine, web: str, tmp_path: Path
) -> None:
    large = tmp_path / "large"
    large.write_bytes(os.urandom(1 << 20) * (4 if engine.emulated else 40))
    cerne.ok("cp", str(large), f"{web}:/tmp/large")
    cerne.ok("cp", f"{web}:/tmp/large", str(tmp_path / "back"))
    assert _digest(tmp_path / "back") == _digest(large)


def test_directories_go_in_and_out(cerne: Cerne, web: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "inner").mkdir(parents=True)
    (tree / "inner" / "script").write_text("#!/bin/sh\necho ran\n")
    (tree / "inner" / "script").chmod(0o755)
    (tree / "link").symlink_to("inner/script")
    cerne.ok("cp", str(tree), f"{web}:/tmp/tree")
    assert cerne.ok("exec", web, "/tmp/tree/link") == "ran\n"
    cerne.ok("cp", f"{web}:/tmp/tree", str(tmp_path / "back"))
    assert (tmp_path / "back" / "inner" / "script").stat().st_mode & 0o111
    assert (tmp_path / "back" / "link").readlink() == Path("inner/script")


@pytest.mark.slow_if_emulated
def test_a_copy_that_cannot_be_is_refused(cerne: Cerne, web: str, tmp_path: Path) -> None:
    assert "here" in cerne.refused("cp", "/etc/passwd", "/tmp/x")
    cerne.refused("cp", f"{web}:/no/such/file", str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()
    cerne.refused("cp", str(tmp_path / "missing"), f"{web}:/tmp/x")


def test_a_published_port_leads_to_a_web_server(
    cerne: Cerne, engine: Engine, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    port = _free_port()
    cerne.ok("run", "-d", "--name", "www", "--publish", f"{port}:80", *engine.options, "tiny")
    serve = "mkdir -p /www && echo heartwood > /www/index.html && httpd -p 80 -h /www"
    cerne.ok("exec", "www", "--", "sh", "-c", serve)
    eventually(lambda: _fetched(port) == "heartwood\n")
    assert "in use" in cerne.refused("run", "--rm", "--publish", f"{port}:80", "tiny", "true")
    assert cerne.names() == ["www"]


@pytest.mark.slow_if_emulated
def test_a_guest_reaches_a_server_on_the_host(cerne: Cerne, engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from the host\n")
    port = _free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    server = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        fetch = ("wget", "-q", "-O", "-", f"http://10.0.2.2:{port}/file")
        run = ("run", "--rm", *engine.options)
        opened = ("--host-access", str(port))
        assert cerne.ok(*run, *opened, "tiny", "--", *fetch) == "from the host\n"
    finally:
        server.kill()
        server.wait()


@pytest.mark.slow_if_emulated
def test_a_directory_of_the_host_is_mounted(
    cerne: Cerne, engine: Engine, mounting: None, tmp_path: Path
) -> None:
    run = ("run", "--rm", *engine.options)
    (tmp_path / "in").write_text("seen\n")
    script = "cat /mnt/here/in && echo written > /mnt/here/out"
    mount = f"{tmp_path}:/mnt/here"
    assert cerne.ok(*run, "--mount", mount, "tiny", "--", "sh", "-c", script) == "seen\n"
    assert (tmp_path / "out").read_text() == "written\n"
    done = cerne(*run, "--mount", f"{mount}:ro", "tiny", "--", "touch", "/mnt/here/no")
    assert done.returncode != 0
    assert not (tmp_path / "no").exists()


@pytest.mark.slow_if_emulated
def test_a_file_that_a_guest_makes_gives_nobody_another_users_rights(
    cerne: Cerne, engine: Engine, mounting: None, root: None, tmp_path: Path
) -> None:
    former = tmp_path / "former"
    former.write_bytes(b"")
    former.chmod(0o4777)
    script = """
        cd /mnt/here
        cp /bin/busybox new; cat /bin/busybox >former; cp /bin/busybox owned; chmod 755 new owned
        for file in new owned; do chmod 4755 $file; chmod 2755 $file; done
        mknod device c 1 3
        chown 1234:1235 owned
        chmod 751 owned
        ls -ln owned | cut -c1-10
    """
    run = ("run", "--rm", *engine.options, "--mount", f"{tmp_path}:/mnt/here", "tiny")
    done = cerne(*run, "--", "sh", "-c", script)
    assert done.stdout == b"-rwxr-x--x\n"
    assert done.stderr.count(b"Operation not permitted") == 5
    assert not (tmp_path / "device").exists()
    status = (tmp_path / "owned").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (1234, 1235, 0o751)
    # Another user of the host runs them where they are.
    for above in [tmp_path, *tmp_path.parents]:
        if above != Path("/") and above.stat().st_uid == 0:
            above.chmod(above.stat().st_mode | 0o111)
    for name in ("new", "former"):
        assert not (tmp_path / name).stat().st_mode & 0o6000
        ids = subprocess.run(
            ["busybox", "id", "-u"],
            executable=tmp_path / name,
            user=65534,
            group=65534,
            extra_groups=[],
            capture_output=True,
            check=True,
        )
        assert ids.stdout == b"65534\n"


def test_the_library_does_what_the_command_line_does(cerne: Cerne, engine: Engine) -> None:
    script = """
import cerne, os, sys
with cerne.run("tiny", engine=sys.argv[1], memory="128M", labels={"of": "test"}) as vm:
    assert vm.state == "running"
    first, *others = vm.walls
    assert (first.role, first.pid) == ("machine", vm.record.process.pid)
    assert {process.role for process in others} >= {"net0", "net0-supervisor"}
    for process in vm.walls:
        if os.geteuid() == 0:
            assert {"limits", "namespaces", "root", "user", "capabilities"} <= set(process.up)
        assert {"no-new-privileges", "seccomp"} <= set(process.up)
    assert all(str(first.pid) in (group / "cgroup.procs").read_text() for group in vm.groups)
    done = vm.exec(["sh", "-c", "cat; exit 4"], stdin=b"round trip")
    assert (done.status, done.stdout) == (4, b"round trip"), done
    name = vm.name
assert name not in [machine.name for machine in cerne.Manager().machines()]
"""
    command = [sys.executable, "-c", script, engine.name]
    subprocess.run(command, env=cerne.environment, check=True, timeout=PATIENCE)


@pytest.mark.slow_if_emulated
def test_the_library_from_asyncio(cerne: Cerne, engine: Engine) -> None:
    script = """
import asyncio, cerne, sys
async def name(number):
    async with cerne.run_async("tiny", engine=sys.argv[1], memory="128M") as vm:
        return (await vm.exec(["echo", str(number)], check=True)).stdout
async def main():
    assert await asyncio.gather(name(1), name(2)) == [b"1\\n", b"2\\n"]
asyncio.run(main())
"""
    command = [sys.executable, "-c", script, engine.name]
    subprocess.run(command, env=cerne.environment, check=True, timeout=PATIENCE)


@pytest.mark.slow_if_emulated
def test_listings_are_also_for_programs(cerne: Cerne, web: str) -> None:
    (listed,) = json.loads(cerne.ok("ls", "--json"))
    assert (listed["name"], listed["state"], listed["image"]) == ("web", "running", "tiny")
    (used,) = json.loads(cerne.ok("stats", "--json"))
    assert used["memory_bytes"] == 128 << 20
    assert used["resident_bytes"] > 10_000_000
    assert used["all_cpu_seconds"] > 0
    if os.geteuid() == 0:
        assert 10_000_000 < used["proportional_bytes"] <= 2 * used["resident_bytes"]
    inspected = json.loads(cerne.ok("inspect", "--json", "web"))
    roles = {process["role"]: process["missing"] for process in inspected["processes"]}
    assert "no-new-privileges" not in roles["machine"]
    assert all(Path(path).is_dir() for path in inspected["control_group_paths"])
    said = cerne.ok("inspect", "web")
    assert all(f"\nwalls of {role} " in said for role in roles)
    (shown,) = json.loads(cerne.ok("top", "--json", "--interval", "200ms"))
    assert shown["name"] == "web"
    assert shown["rates"]["cpus"] >= 0
    assert shown["rates"]["steal"] >= 0
    assert cerne.ok("top", "--once").splitlines()[1].startswith("web ")
    kinds = [event["kind"] for event in json.loads(cerne.ok("events", web, "--json"))]
    assert kinds == ["created", "starting", "started", "ready"]
    assert "\x1b" not in cerne.ok("ls")


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _fetched(port: int) -> str:
    from http.client import HTTPException
    from urllib.error import URLError
    from urllib.request import urlopen

    try:
        with urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
            text: bytes = answer.read()
    except (URLError, OSError, HTTPException):
        return ""
    return text.decode()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_the_log_is_shown_where_it_is_asked_for(cerne: Cerne) -> None:
    run = ("run", "--rm", "--engine", "qemu", "tiny", "true")
    quiet, told = cerne(*run), cerne("-v", *run)
    assert quiet.stderr == b""
    assert b"qemu-system-x86_64 -name" in told.stderr
    assert b"answers" in told.stderr


def test_an_imported_disk_is_booted_by_firmware(
    cerne: Cerne, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    iso = Path("/usr/lib/ipxe/ipxe.iso")
    if not iso.exists():
        pytest.skip("iPXE is not installed: sudo apt-get install -y ipxe")
    cerne.ok("image", "import", str(iso), "--name", "ipxe")
    try:
        cerne.ok("run", "-d", "--name", "fw", "ipxe")
        eventually(lambda: "iPXE initialising devices...ok" in cerne.ok("logs", "fw"))
        assert "no agent" in cerne.refused("exec", "fw", "true", status=125)
        cerne.ok("rm", "--force", "fw")
    finally:
        cerne.ok("image", "rm", "ipxe")
