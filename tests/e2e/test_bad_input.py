"""What makes no sense is refused in words, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path

import pytest
from tests.e2e.conftest import Cerne, Engine

from cerne.images import ImageStore, Parts
from cerne.manager import Home

_RUN = ("run", "--rm")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*_RUN, "no-such-image", "true"), "no-such-image"),
        ((*_RUN, "--name", "a/b", "tiny", "true"), "is not valid as a machine's name"),
        ((*_RUN, "--name", "..", "tiny", "true"), "is not valid as a machine's name"),
        ((*_RUN, "--name", "a b", "tiny", "true"), "is not valid as a machine's name"),
        ((*_RUN, "--name", "x" * 300, "tiny", "true"), "is not valid as a machine's name"),
        ((*_RUN, "--cpus", "0", "tiny", "true"), "cpus is 0"),
        ((*_RUN, "--cpus", "10000", "tiny", "true"), "cpus is 10000"),
        ((*_RUN, "--cpus", "200", "tiny", "true"), "--cpus"),
        ((*_RUN, "--memory", "1K", "tiny", "true"), "memory is 1K"),
        ((*_RUN, "--memory", "60T", "tiny", "true"), "this host can give"),
        ((*_RUN, "--memory", "12 bananas", "tiny", "true"), "'12 bananas' is not a size"),
        ((*_RUN, "--publish", "70000:80", "tiny", "true"), "70000 is not a port"),
        ((*_RUN, "--publish", "80:0", "tiny", "true"), "0 is not a port"),
        ((*_RUN, "--publish", "http", "tiny", "true"), "not a published port"),
        ((*_RUN, "--mount", "/no/such/path:/mnt", "tiny", "true"), "does not exist"),
        ((*_RUN, "--disk", "1G", "tiny", "true"), "no disk"),
        ((*_RUN, "--env", "novalue", "tiny", "true"), "KEY=VALUE"),
        ((*_RUN, "--engine", "bochs", "tiny", "true"), "engine"),
        (("run", "-d", "--rm", "tiny"), "--detach"),
        (("start", "nobody"), "no machine named nobody"),
        (("exec", "nobody", "true"), "no machine named nobody"),
        (("stop", "--timeout", "soon", "nobody"), "'soon' is not a duration"),
        (("image", "rm", "nothing"), "nothing"),
        (("image", "import", "/no/such/file"), "/no/such/file"),
    ],
)
def test_refused(cerne: Cerne, words: tuple[str, ...], said: str) -> None:
    assert said in cerne.refused(*words)
    assert cerne.names() == []
    assert cerne.leftovers() == []


def test_a_port_in_use(cerne: Cerne) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = cerne.refused(*_RUN, "--publish", f"{port}:80", "tiny", "true")
    assert "in use" in said
    assert cerne.leftovers() == []


def test_a_name_in_use(cerne: Cerne) -> None:
    cerne.ok("create", "--name", "a", "tiny")
    assert "cerne rm a" in cerne.refused("create", "--name", "a", "tiny", status=4)


def test_an_image_in_use_is_kept(cerne: Cerne) -> None:
    cerne.ok("create", "--name", "a", "tiny")
    assert "cerne rm a" in cerne.refused("image", "rm", "tiny", status=4)


def test_a_guest_that_is_never_ready(cerne: Cerne, engine: Engine) -> None:
    run = ("run", "--cold", *engine.options)
    said = cerne.refused(*run, "--name", "slow", "--timeout", "0.2s", "tiny", "true")
    assert "was not ready after 0.2 s" in said
    assert "console.log" in said
    assert cerne.machine("slow")["state"] == "failed"
    assert cerne.processes() == []


def test_what_a_removed_failure_said_is_kept(cerne: Cerne, engine: Engine) -> None:
    run = ("run", "--cold", "--rm", *engine.options)
    cerne.refused(*run, "--name", "brief", "--timeout", "0.2s", "tiny", "true")
    assert (cerne.home / "failures" / "brief.console.log").exists()


def test_a_truncated_image(cerne: Cerne, tmp_path: Path) -> None:
    path = tmp_path / "short.qcow2"
    path.write_bytes(b"QFI\xfb\0\0\0\3" + bytes(20))
    cerne.refused("image", "import", str(path))


def test_a_backing_file_from_outside(cerne: Cerne, tmp_path: Path) -> None:
    import subprocess

    path = tmp_path / "thief.qcow2"
    create = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/shadow"]
    subprocess.run([*create, str(path), "1M"], check=True)
    assert "backing" in cerne.refused("image", "import", str(path))
    assert json.loads(cerne.ok("image", "ls", "--json"))[0]["name"] == "tiny"


def test_a_file_that_is_no_image(cerne: Cerne) -> None:
    cerne.refused("image", "import", "/etc/passwd")


def test_a_store_that_is_damaged(cerne: Cerne, home: Path) -> None:
    home.mkdir(exist_ok=True)
    (home / "store.sqlite").write_bytes(os.urandom(8192))
    broken = Cerne(home)
    assert "store.sqlite is damaged" in broken.refused("ls", status=10)


@pytest.mark.slow_if_emulated
def test_a_kernel_that_panics(cerne: Cerne, engine: Engine, tmp_path: Path) -> None:
    store = ImageStore(cerne.home / "images", Home.of_this_user().cache)
    tiny = store.get("tiny").boot
    assert tiny is not None
    kernel = tmp_path / "kernel"
    shutil.copyfile(tiny.kernel, kernel)
    store.add("rootless", Parts(kernel, None, "console=ttyS0", agent=True), source="a test")
    run = ("run", *engine.options)
    said = cerne.refused(*run, "--name", "lost", "--timeout", "100s", "rootless", "true")
    assert "panic" in said
    assert "console.log" in said
    failed = cerne.machine("lost")
    assert failed["state"] == "failed"
    assert "panicked" in str(failed["reason"])
    assert cerne.processes() == []
    cerne.ok("rm", "lost")
    cerne.ok("image", "rm", "rootless")
