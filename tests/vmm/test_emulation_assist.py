"""What guests are told on hosts that emulate their kernels."""

from __future__ import annotations

from cerne.vmm.emulation_assist import command_line


def test_a_guest_keeps_its_own_root() -> None:
    added = command_line(1_000_000).split()
    assert [word for word in added if word.startswith(("root", "init="))] == []
