"""What a machine's disks, network cards and vCPUs have done, by QMP, the same for both engines.

``query-blockstats``, ``query-stats`` and ``query-cpus-fast`` are QEMU's (qapi/block-core.json,
stats.json, machine.json); `cerne.vmm.commands` has them too, and the traffic of network cards,
which QEMU does not count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cerne.engine.base import Activity
from cerne.engine.qmp.answers import mapping, mappings
from cerne.engine.qmp.client import LOOK_TIMEOUT, QmpClient

if TYPE_CHECKING:
    from collections.abc import Callable

_EXITS = {"target": "vcpu", "providers": [{"provider": "kvm", "names": ["exits"]}]}
_MOST = 1 << 64


def activity(socket: Path) -> Activity:
    """What a machine's devices and vCPUs have done.

    Raises:
        EngineError: the machine does not answer.
    """
    from cerne.engine.qmp.session import QmpCommandError

    with QmpClient(socket, connect_timeout=LOOK_TIMEOUT) as qmp:

        def asked(command: str, arguments: Mapping[str, object] | None = None) -> object:
            try:
                return qmp.execute(command, arguments)
            except QmpCommandError:
                # A process that was started by an older version does not have it.
                return None

        return _of_answers(asked)


def _of_answers(asked: Callable[..., object]) -> Activity:
    disks = [mapping(each.get("stats")) for each in mappings(asked("query-blockstats"))]
    exits = [*_exits(asked("query-stats", _EXITS))]
    traffic = mapping(asked("cerne-query-traffic"))
    processors = mappings(asked("query-cpus-fast"))
    return Activity(
        disk_read=_sum(disks, "rd_bytes"),
        disk_written=_sum(disks, "wr_bytes"),
        disk_reads=_sum(disks, "rd_operations"),
        disk_writes=_sum(disks, "wr_operations"),
        received=_number(traffic, "received"),
        sent=_number(traffic, "sent"),
        # Without KVM there is none.
        exits=_sum(exits, "value") if exits else None,
        vcpu_threads=tuple(
            thread for each in processors if (thread := _number(each, "thread-id")) is not None
        ),
    )


def _exits(answer: object) -> Iterator[Mapping[str, object]]:
    for processor in mappings(answer):
        for value in mappings(processor.get("stats")):
            if value.get("name") == "exits":
                yield value


def _sum(parts: Sequence[Mapping[str, object]], name: str) -> int | None:
    """The sum of a value of all parts; None if one does not have it."""
    numbers = [number for part in parts if (number := _number(part, name)) is not None]
    return sum(numbers) if len(numbers) == len(parts) else None


def _number(part: Mapping[str, object], name: str) -> int | None:
    value = part.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if 0 <= value < _MOST else None
