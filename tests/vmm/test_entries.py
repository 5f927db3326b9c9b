"""The ways in which a kernel is entered, each with a guest that says its command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.guests.harness import running
from tests.guests.images import bzimage, elf, pvh_note

from cerne.units import MIB

# In 32-bit and 64-bit mode alike: say the text at EBX, and switch off by ACPI's sleep control.
_SAY = bytes.fromhex("66baf803 8a03 84c0 7405 ee ffc3 ebf5 66ba0006 b034 ee f4")
_LINUX = bytes.fromhex("8b9e28020000") + _SAY  # ESI is at the zero page
_PVH = bytes.fromhex("8b5b18") + _SAY  # EBX is at the start info

_KERNELS = {
    "ELF by Linux's 64-bit protocol": elf([(MIB, 4096, _LINUX)], MIB),
    "ELF by PVH": elf([(MIB, 4096, _PVH)], 0, pvh_note(MIB)),
    "bzImage by the 64-bit protocol": bzimage(bytes(0x200) + _LINUX),
    "bzImage by the 32-bit protocol": bzimage(_LINUX, long_mode=False),
}


@pytest.mark.parametrize("name", _KERNELS)
def test_a_kernel_finds_its_command_line(name: str, home: Path, kvm_device: Path) -> None:
    kernel = home / "kernel"
    kernel.write_bytes(_KERNELS[name])
    with running(home, kernel, command_line="root=here quiet") as machine:
        assert machine.end() == (True, "the guest shut down")
        assert machine.console() == b"root=here quiet"


def test_a_32_bit_guest_returns_from_an_interrupt(home: Path, emulated: bool) -> None:
    # pushf; push cs; push of what follows the iret and a hlt
    frame = bytes.fromhex("9c 0e 68") + (MIB + 9).to_bytes(4, "little")
    kernel = home / "kernel"
    kernel.write_bytes(bzimage(frame + bytes.fromhex("cf f4") + _LINUX, long_mode=False))
    with running(home, kernel, command_line="back", emulated=emulated) as machine:
        assert machine.end() == (True, "the guest shut down")
        assert machine.console().startswith(b"back")
