"""The distribution's own kernel, a bzImage that was not built for us: how far it gets."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.guests.harness import Running, running

from cerne.arch.x86.kernel import Protocol, load_kernel
from cerne.errors import HostError
from cerne.images.distribution_kernel import distribution_kernel
from cerne.kvm.memory import GuestAddress, GuestMemory
from cerne.manager import Home
from cerne.units import MIB

_EARLY = "earlyprintk=serial,ttyS0,115200 nokaslr"
_UNPACKS = b"KASLR disabled: 'nokaslr' on cmdline."
_STAGES = {
    "it unpacks itself": _UNPACKS,
    "the kernel proper runs": b"Linux version ",
    "it knows its memory": b"Memory: ",
    "it knows its clock": b"clocksource: ",
    "its processors are up": b"smp: Brought up",
    "its drivers start": b"NET: Registered PF_NETLINK",
    "it looks for PCI": b"PCI: Using configuration",
    "it is done, and lacks a root": b"Unable to mount root fs",
}
_LIMIT = 300
"""Seconds of the processor's time, as an emulated host may be busy with other things."""


@pytest.fixture(scope="session")
def stock_kernel() -> Path:
    """The kernel's bzImage, from its package."""
    try:
        return distribution_kernel(Home.of_this_user().cache, lambda what, done, whole: None).kernel
    except HostError as error:
        pytest.skip(f"the distribution's kernel is missing: {error}")


def test_a_stock_kernel_lies_in_memory_as_in_its_file(stock_kernel: Path) -> None:
    image = stock_kernel.read_bytes()
    code = image[(image[0x1F1] + 1) * 512 :]
    with (
        GuestMemory.anonymous([(GuestAddress(0), 128 * MIB)]) as memory,
        stock_kernel.open() as file,
    ):
        loaded = load_kernel(memory, file.fileno())
        start = GuestAddress(loaded.entry - 0x200)
        assert loaded.protocol is Protocol.LINUX64
        assert memory.read(start, len(code)) == code
        assert loaded.end > start + len(code)


def test_a_stock_kernel_unpacks_itself(home: Path, stock_kernel: Path, emulated: bool) -> None:
    with running(
        home, stock_kernel, memory=128 * MIB, command_line=_EARLY, emulated=emulated
    ) as machine:
        machine.wait_for(_UNPACKS)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_how_far_a_stock_kernel_gets(
    home: Path, stock_kernel: Path, emulated: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"{_EARLY} console=ttyS0 panic=-1 reboot=k"
    with running(
        home, stock_kernel, memory=256 * MIB, command_line=words, emulated=emulated
    ) as machine:
        reached, end = _stages(machine)
        last = machine.console().decode(errors="replace").splitlines()[-1:]
    with capsys.disabled():
        print()
        for stage, seconds in reached.items():
            print(f"{seconds:6.1f} s of processor time: {stage}")
        print(f"its last words: {last}; {end}")
    assert "the kernel proper runs" in reached, end


def _stages(machine: Running) -> tuple[dict[str, float], str]:
    """When it reached each stage, in seconds of processor time, and why it was left alone then."""
    reached: dict[str, float] = {}
    while True:
        used = machine.cpu_time()
        ended = machine.process.poll() is not None
        said = machine.console()
        for stage, words in _STAGES.items():
            if words in said:
                reached.setdefault(stage, used)
        if ended:
            return reached, f"it ended: {machine.errors()}"
        if used > _LIMIT or len(reached) == len(_STAGES):
            return reached, f"it ran for {used:.0f} s"
        time.sleep(0.5)
