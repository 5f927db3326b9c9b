"""Disks and network cards that come and go while a guest runs."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.e2e.conftest import Cerne, Engine, only_native

from cerne.errors import GuestTimeoutError
from cerne.manager import Manager
from cerne.spec.machine import machine_spec

_FIND = "grep -l {} /sys/block/*/serial | cut -d/ -f4"
_MOUNT = f"mkdir -p /m && mount /dev/$({_FIND}) /m && "

_UNTOLD = "they have no ACPI, and are not told of devices that come and go"


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "carried.raw"
    with path.open("wb") as file:
        file.truncate(16 << 20)
    return path


@pytest.mark.not_if_emulated(_UNTOLD)
def test_a_disk_is_carried_from_machine_to_machine(
    cerne: Cerne, engine: Engine, own_kernel: None, disk: Path, eventually: Callable[..., None]
) -> None:
    run = ("run", "-d", *engine.options)

    def sees(name: str, serial: str) -> bool:
        return cerne("exec", name, "--", "grep", "-l", serial, "-r", "/sys/block").stdout != b""

    def shell(name: str, script: str) -> str:
        return cerne.ok("exec", name, "--", "sh", "-c", script)

    cerne.ok(*run, "--name", "a", "--data-disk", "8M", "tiny")
    cerne.ok(*run, "--name", "b", "tiny")
    assert shell("a", "cat /sys/block/vd?/serial") == "data1"
    assert cerne.ok("disk", "attach", "a", str(disk), "--serial", "carried") == "carried\n"
    find = _FIND.format("carried")
    eventually(lambda: shell("a", find) != "")
    shell("a", f"mke2fs /dev/$({find})")
    shell("a", f"{_MOUNT.format('carried')} echo here >/m/f && umount /m")
    assert "another machine" in cerne.refused("disk", "attach", "b", str(disk), status=4)
    assert "detach a carried" in cerne.refused("fork", "a", status=2)
    assert cerne.ok("disk", "detach", "a", "carried") == f"{disk}\n"
    assert shell("a", f"{find} || true") == ""
    assert cerne.ok("disk", "attach", "b", str(disk), "--read-only", "--serial", "carried")
    eventually(lambda: shell("b", find) != "")
    assert shell("b", f"{_MOUNT.format('carried')} cat /m/f") == "here\n"
    assert cerne("exec", "b", "touch", "/m/g").returncode != 0

    # A disk of its own goes with a fork, and stays where it is taken out.
    shell("a", "echo mine >/dev/vda; sync")
    cerne.ok("fork", "a", "--name", "child")
    shell("a", "echo more >/dev/vda; sync")
    assert shell("child", "head -c 5 /dev/vda") == "mine\n"
    (kept,) = cerne.ok("disk", "detach", "child", "data1").split()
    assert Path(kept).parent == cerne.home / "disks"
    cerne.ok("rm", "--force", "child")
    cerne.ok("disk", "attach", "b", kept, "--serial", "kept")
    eventually(lambda: shell("b", _FIND.format("kept")) != "")
    assert shell("b", f"head -c 5 /dev/$({_FIND.format('kept')})") == "mine\n"
    listed = json.loads(cerne.ok("disk", "ls", "--json", "b"))
    assert [(each["serial"], each["read_only"]) for each in listed] == [
        ("carried", True),
        ("kept", False),
    ]

    # It has what it has at its next start too.
    cerne.ok("restart", "a")
    assert shell("a", "head -c 5 /dev/vda") == "more\n"


@pytest.mark.not_if_emulated(_UNTOLD)
def test_a_network_card_comes_and_goes(
    cerne: Cerne, engine: Engine, own_kernel: None, eventually: Callable[..., None]
) -> None:
    cerne.ok("run", "-d", "--name", "n", *engine.options, "tiny")
    assert cerne.ok("nic", "attach", "n") == "1\n"
    addresses = {
        each["number"]: each["mac"] for each in json.loads(cerne.ok("nic", "ls", "n", "--json"))
    }
    eventually(lambda: cerne("exec", "n", "ls", "/sys/class/net/eth1").returncode == 0)
    assert cerne.ok("exec", "n", "cat", "/sys/class/net/eth1/address").strip() == addresses[1]
    script = "ip link set eth1 up && ip address add 10.0.2.77/24 dev eth1 && ip route get 10.0.2.2"
    cerne.ok("exec", "n", "--", "sh", "-c", script)
    assert cerne.ok("nic", "detach", "n", "1") == "1\n"
    assert cerne("exec", "n", "ls", "/sys/class/net/eth1").returncode != 0
    assert "no removable network card 0" in cerne.refused("nic", "detach", "n", "0", status=3)


@pytest.mark.slow_if_emulated
@only_native
def test_a_disk_comes_and_goes_without_acpi(cerne: Cerne, engine: Engine) -> None:
    if not engine.emulated:
        pytest.skip("guests have ACPI where their kernels are not emulated")
    cerne.ok("run", "-d", "--name", "n", *engine.options, "tiny")
    assert cerne.ok("disk", "attach", "n", "8M") == "data1\n"
    script = "echo 1 >/sys/bus/pci/rescan; cat /sys/block/vda/serial"
    assert cerne.ok("exec", "n", "--", "sh", "-c", script) == "data1"
    cerne.ok("exec", "n", "--", "sh", "-c", "echo mine >/dev/vda; sync")
    cerne.ok("fork", "n", "--name", "child")
    cerne.ok("exec", "n", "--", "sh", "-c", "echo more >/dev/vda; sync")
    assert cerne.ok("exec", "child", "head", "-c", "5", "/dev/vda") == "mine\n"
    cerne.ok("exec", "n", "--", "sh", "-c", "echo 1 >/sys/bus/pci/devices/0000:00:18.0/remove")
    assert cerne.ok("exec", "n", "ls", "/sys/block") == ""
    (kept,) = cerne.ok("disk", "detach", "--force", "n", "data1").split()
    assert cerne.ok("exec", "n", "echo", "well") == "well\n"
    cerne.ok("disk", "attach", "n", kept, "--serial", "again")
    assert "detach n again" in cerne.refused("suspend", "n", status=2)


_WITH_ACPI = """
from cerne.vmm import emulation_assist
for words in ("acpi=off ", "param_sysfs_init,"):
    emulation_assist.COMMAND_LINE = emulation_assist.COMMAND_LINE.replace(words, "")
from cerne.vmm.__main__ import main
raise SystemExit(main())
"""
"""A VMM whose guests have ACPI on hosts that emulate their kernels too; Linux has no slots for it
without the directory of modules that param_sysfs_init makes."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_native_linux_is_told_by_acpi(
    cerne: Cerne,
    kvm_device: Path,
    own_kernel: None,
    monkeypatch: pytest.MonkeyPatch,
    disk: Path,
) -> None:
    monkeypatch.setenv("CERNE_HOME", str(cerne.home))
    monkeypatch.setattr(
        "cerne.engine.native.launching.VMM", (sys.executable, "-I", "-c", _WITH_ACPI)
    )
    manager = Manager()
    spec = machine_spec(name="acpi", engine="native", memory="128M")
    machine = manager.run(spec, timeout=600, cold=True)

    def shell(script: str) -> str:
        while True:
            # An emulated kernel that looks at a new device does not let its agent answer meanwhile.
            with contextlib.suppress(GuestTimeoutError):
                return machine.exec(["sh", "-c", script], timeout=100).stdout.decode()

    try:
        machine.attach_disk(disk, "carried")
        shell("until [ -e /sys/block/vda/serial ]; do sleep 0.2; done")
        assert shell("cat /sys/block/vda/serial; echo here >/dev/vda; sync") == "carried"
        number = machine.attach_nic().number
        shell("until [ -e /sys/class/net/eth1 ]; do sleep 0.2; done")
        assert shell("cat /sys/class/net/eth1/address").strip() == machine.nics()[number]
        machine.detach_disk("carried", timeout=200)
        machine.detach_nic(number, timeout=200)
        assert shell("ls /sys/block; ls /sys/class/net").split() == ["eth0", "lo"]
        assert disk.read_bytes().startswith(b"here\n")
    finally:
        machine.remove(force=True)
