"""The memory that a running machine has, and plugging more by QMP, the same for both engines.

A guest plugs memory itself, block by block, and may take seconds for each. So each look at it is a
connection of its own, which keeps no other command waiting.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from cerne.engine.qmp.answers import mappings
from cerne.engine.qmp.client import QmpClient
from cerne.errors import CapacityError, GuestError, InputError, StateError
from cerne.units import MIB, format_size

DEVICE = "memory"
"""The name of the device."""
BLOCK_SIZE = 128 * MIB
"""What a machine of QEMU is grown by at a time; the least that Linux adds."""

_PATH = f"/machine/peripheral/{DEVICE}"
_PATIENCE = 20.0
"""Seconds without a change of what the guest has, after which it is not waited for."""
_LONG_PATIENCE = 60.0
"""The same if it gives memory back, for which it has to move what is there."""
_MOMENT = 0.1


@dataclass(frozen=True, slots=True)
class MachineMemory:
    """The memory of a running machine, in bytes."""

    base: int
    """What it started with."""
    requested: int
    """What its guest should have in addition."""
    plugged: int
    """What its guest has in addition."""
    most: int = 0
    """What it can have in addition; 0 if it has no device for it."""
    block: int = BLOCK_SIZE

    @property
    def size(self) -> int:
        """What it has or should have."""
        return self.base + self.requested


Connect = Callable[[], QmpClient]
"""Connects to the machine."""


def memory_of(qmp: QmpClient) -> MachineMemory | None:
    """The memory of a machine; None if its process is older than this question.

    Raises:
        EngineError: it does not answer.
    """
    from cerne.engine.qmp.session import QmpCommandError

    try:
        base = _number(qmp.execute("query-memory-size-summary"), "base-memory")
        devices = qmp.execute("query-memory-devices")
    except QmpCommandError:
        return None
    if not base:
        return None
    for device in mappings(devices):
        if device.get("type") == "virtio-mem":
            said = device.get("data")
            return MachineMemory(
                base,
                requested=_number(said, "requested-size"),
                plugged=_number(said, "size"),
                most=_number(said, "max-size"),
                block=_number(said, "block-size") or BLOCK_SIZE,
            )
    return MachineMemory(base, 0, 0)


def resize(connect: Connect, size: int, machine: str) -> int:
    """Have a guest plug or unplug memory until the machine has `size` bytes; what it has then.

    A guest that plugs slowly continues after this; one that does not give all back keeps the rest.

    Raises:
        InputError, CapacityError: the machine does not have so much or so little while it runs.
        StateError: it has no device for it.
        GuestError: its guest does nothing; all is as it was.
        EngineError: it does not answer, or refuses.
    """
    with connect() as qmp:
        before = memory_of(qmp)
        _require(before, size, machine)
        assert before is not None
        wanted = size - before.base
        _request(qmp, wanted)
    after = _awaited(connect, wanted, before)
    if after.plugged == wanted:
        return size
    if after.plugged == before.plugged:
        with connect() as qmp:
            _request(qmp, before.requested)
        raise _nothing_done(before, wanted, machine)
    if wanted < before.plugged:
        with connect() as qmp:
            _request(qmp, after.plugged)
    return after.base + after.plugged


def _require(memory: MachineMemory | None, size: int, machine: str) -> None:
    if memory is None or not memory.most:
        raise StateError(
            f"{machine} has no device to plug memory: an older Cerne started it, its memory is in"
            " hugepages, or other processes share it, as for --mount on the engine native",
            hint=f"{_stopped(machine, size)}; or to limit what its guest uses: cerne set {machine}"
            " --balloon SIZE",
            machine=machine,
        )
    if size < memory.base:
        raise InputError(
            f"{machine} started with {format_size(memory.base)} of memory, and its guest gives none"
            " of this back while it runs",
            hint=f"limit what its guest uses: cerne set {machine} --balloon {_option(size)}; or"
            f" {_stopped(machine, size)}",
        )
    if size > memory.base + memory.most:
        most = memory.base + memory.most
        raise CapacityError(
            f"{machine} can have {format_size(most)} of memory while it runs",
            hint=_stopped(machine, size),
            machine=machine,
        )
    extra = size - memory.base
    if extra % memory.block:
        less = size - extra % memory.block
        raise InputError(
            f"the memory of {machine} changes by whole blocks of {format_size(memory.block)} while"
            " it runs",
            hint=f"give --memory {_option(less)} or --memory {_option(less + memory.block)}",
        )


def _nothing_done(before: MachineMemory, wanted: int, machine: str) -> GuestError:
    if wanted < before.plugged:
        return GuestError(
            f"the guest of {machine} gives no memory back: it uses all of it",
            hint="end programs in the guest, and try again",
            machine=machine,
        )
    return GuestError(
        f"the guest of {machine} plugs no memory: it has no driver for virtio-mem"
        " (CONFIG_VIRTIO_MEM), or has not booted yet",
        hint=f"try again when it has booted; or {_stopped(machine, before.base + wanted)}",
        machine=machine,
    )


def _stopped(machine: str, size: int) -> str:
    return (
        f"change it while it is stopped: cerne stop {machine}; cerne set {machine} --memory"
        f" {_option(size)}; cerne start {machine}"
    )


def _awaited(connect: Connect, wanted: int, before: MachineMemory) -> MachineMemory:
    """The memory when the guest has what is wanted, or has changed nothing for a while."""
    patience = _PATIENCE if wanted > before.plugged else _LONG_PATIENCE
    last, deadline = before, time.monotonic() + patience
    while last.plugged != wanted and time.monotonic() < deadline:
        time.sleep(_MOMENT)
        with connect() as qmp:
            now = memory_of(qmp)
        if now is not None and now != last:
            if now.plugged != last.plugged:
                deadline = time.monotonic() + patience
            last = now
    return last


def _request(qmp: QmpClient, size: int) -> None:
    qmp.execute("qom-set", {"path": _PATH, "property": "requested-size", "value": size})


def _option(size: int) -> str:
    return f"{size // MIB}M"


def _number(said: object, name: str) -> int:
    value = said.get(name) if isinstance(said, dict) else None
    return value if isinstance(value, int) and value >= 0 else 0
