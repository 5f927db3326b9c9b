"""Guests in real mode, 32 bit, 64 bit and ring 3 look at the machine, and say what they saw."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.guests.conftest import Built
from tests.guests.harness import Running, running

from cerne.engine.qmp import QmpClient


def _said(machine: Running) -> list[str]:
    assert machine.end() == (True, "the guest shut down"), machine.console()
    lines = machine.console().decode(errors="replace").splitlines()
    assert [line for line in lines if line.startswith("WRONG")] == []
    assert lines[-1] == "done"
    return lines


def test_a_64_bit_guest_sees_a_whole_machine(
    home: Path, built: Built, emulated: bool, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(64 << 10))
    words = "use=syscall" if emulated else "use=syscall use=int"
    with running(
        home,
        built("machine"),
        cpus=2,
        disks=[disk],
        nics=1,
        command_line=words,
        emulated=emulated,
    ) as machine:
        said = _said(machine)
    assert said[0] == "64-bit"
    # The second processor, in real, protected and long mode.
    assert "rpl" in said
    wanted = [
        *("e820: ram", "acpi: facp, apic, mcfg", "acpi: processors"),
        *("exception: undefined opcode", "exception: page fault error code"),
        *("cpuid: kvm", "tsc goes on", "kvm-clock: version even, time set", "rtc: month"),
        *("pci: ports and ecam differ", "interrupt: from itself", "interrupt: lapic timer"),
        *("interrupt: pit, twice", "interrupt: serial port by the ioapic", "smp: both counted"),
        *("ring 3: cli is refused", "ring 3: it was there", "ring 3: syscall and back"),
    ]
    assert [what for what in wanted if f"ok {what}" not in said] == []


def test_a_guest_is_entered_by_pvh_and_goes_to_real_mode_and_back(
    home: Path, built: Built, emulated: bool
) -> None:
    with running(home, built("pvh"), command_line="hint", emulated=emulated) as machine:
        said = _said(machine)
    assert said == [
        "32-bit",
        "ok pvh: start info",
        "ok pvh: memory map",
        "ok pvh: rsdp",
        "ok pvh: command line",
        "ok 32-bit: undefined opcode",
        "16-bit",
        "ok real mode and back",
        "done",
    ]


def test_a_guest_switches_off(home: Path, built: Built, kvm_device: Path) -> None:
    with running(home, built("machine"), command_line="end=off") as machine:
        assert machine.end() == (True, "the guest shut down")


@pytest.mark.parametrize("word", ["reset", "acpi-reset"])
def test_a_guest_that_resets_begins_anew(
    home: Path, built: Built, kvm_device: Path, word: str
) -> None:
    with running(home, built("machine"), command_line=f"end={word}") as machine:
        machine.wait_for(b"64-bit\n64-bit\n")
        with QmpClient(machine.qmp) as client:
            client.quit()
        assert machine.end() == (True, "it was told to quit")
