"""Debian with systemd: its boot, its units, its clones, its end, and images that are made of it."""

from __future__ import annotations

import pytest
from tests.e2e.conftest import Cerne, Engine

pytestmark = [pytest.mark.slow, pytest.mark.slow_if_emulated]

_BOOT_LIMIT = "500s"


@pytest.mark.not_if_emulated("Debian's kernel takes minutes there")
def test_a_server_is_one_and_its_clones_are_themselves(
    cerne: Cerne, engine: Engine, no_templates: None
) -> None:
    options = ("--engine", engine.name, "--timeout", _BOOT_LIMIT, "--disk", "6G")
    cerne.ok("image", "build", "debian:12", timeout=560)
    cerne.ok("run", "-d", "--name", "web", *options, "debian:12", timeout=560)

    assert cerne.machine("web")["systemd"] in ("running", "degraded")
    assert _inside(cerne, "web", "systemctl is-active cerne-agent") == "active\n"
    assert _inside(cerne, "web", "cat /proc/1/comm; hostname") == "systemd\nweb\n"
    kilobytes = int(_inside(cerne, "web", "df --output=size / | tail -1"))
    assert kilobytes > 5 << 20
    _inside(cerne, "web", "echo kept > /root/kept; echo secret > /etc/machine-secret")

    cerne.ok("fork", "web", "--name", "copy", timeout=560)
    assert _inside(cerne, "copy", "cat /etc/hostname") == "copy\n"
    own, other = (_inside(cerne, name, "cat /etc/machine-id") for name in ("web", "copy"))
    assert own != other
    assert len(other) == len(own) == 33

    cerne.ok("stop", "--timeout", "120s", "web", "copy", timeout=300)
    assert cerne.machine("web")["reason"] == "the guest shut down"
    cerne.ok("rename", "web", "front")
    cerne.ok("start", "--timeout", _BOOT_LIMIT, "front", timeout=560)
    assert _inside(cerne, "front", "hostname; cat /root/kept") == "front\nkept\n"
    assert _inside(cerne, "front", "cat /etc/machine-id") == own


def test_an_image_of_a_machine_has_its_files_and_not_its_identity(
    cerne: Cerne, engine: Engine, no_templates: None
) -> None:
    cerne.ok("image", "build", "debian:12-minimal", timeout=560)
    cerne.ok("run", "-d", "--name", "source", *engine.options, "debian:12-minimal", timeout=300)
    _inside(
        cerne,
        "source",
        "echo mine > /root/data; echo 1111 > /etc/machine-id; mkdir -p /etc/ssh;"
        " echo secret-of-source > /etc/ssh/ssh_host_rsa_key; sync",
    )
    cerne.ok("stop", "source")
    cerne.ok("image", "create", "gold", "--from", "source", timeout=300)
    cerne.ok("run", "-d", "--name", "made", *engine.options, "gold", timeout=300)
    assert _inside(cerne, "made", "cat /etc/hostname /root/data") == "made\nmine\n"
    assert len(_inside(cerne, "made", "cat /etc/machine-id")) == 33
    assert "secret" not in _inside(cerne, "made", "grep -a -o secret-of-source /dev/vda || true")
    cerne.refused("image", "rm", "gold")


def _inside(cerne: Cerne, name: str, script: str) -> str:
    return cerne.ok("exec", name, "--", "sh", "-c", script)
