"""What a machine gets of its host: guarantees, limits and weights.

Each value is one that the kernel or the machine's own devices enforce: cgroup v2's ``cpu.max``,
``cpu.weight``, ``cpuset.cpus``, ``cpuset.mems``, ``memory.min``, ``memory.max``,
``memory.swap.max``, ``io.weight`` and ``pids.max``
(Documentation/admin-guide/cgroup-v2.rst), and token buckets in disks and network cards.

A guarantee is promised: the host's ledger counts it, and a machine whose guarantees do not fit does
not start. A limit is not counted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from cerne.errors import InputError
from cerne.spec.cpu_list import format_cpu_list, parse_cpu_list
from cerne.spec.flag import Flag
from cerne.spec.limits import (
    DEFAULT_WEIGHT,
    LARGEST_MEMORY,
    LAST_NODE,
    LEAST_PROCESSES,
    LEAST_WEIGHT,
    MOST_CPUS,
    MOST_PROCESSES,
    MOST_WEIGHT,
    SMALLEST_MEMORY,
    SMALLEST_RATE,
)
from cerne.spec.part import Bytes, Part, require_size, require_whole_mib
from cerne.units import counted, format_size, parse_size

_CPUS = re.compile(r"(?P<number>[0-9]{1,6}(?:\.[0-9]{1,3})?)(?P<percent>%?)", re.ASCII)
_DIGITS = re.compile("[0-9]{1,10}", re.ASCII)
_LEAST_CPUS = Decimal("0.01")
"""The kernel's least quota is 1 ms of a period, which is 100 ms by default."""
_THOUSANDTH = Decimal("0.001")
_NONE = "none"
_YES_OR_NO = {"yes": True, "no": False}
_NETWORK = "network_rate"


def parse_cpus(text: str) -> Decimal:
    """Parse a number of CPUs, such as ``1.5``; ``50%`` is half of one CPU.

    Raises:
        InputError: it is not a number of CPUs.
    """
    match = _CPUS.fullmatch(text.strip())
    if match is None:
        raise InputError(f"{text!r} is not a number of CPUs", hint="write it as 1.5, or as 50%")
    number = Decimal(match["number"])
    return number / 100 if match["percent"] else number


def format_cpus(cpus: Decimal) -> str:
    """A number of CPUs for people and for options: ``1.5``, ``2``."""
    return f"{cpus.normalize():f}"


def _cpus(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        return value
    cpus = parse_cpus(value if isinstance(value, str) else str(value))
    if not _LEAST_CPUS <= cpus <= MOST_CPUS or cpus != cpus.quantize(_THOUSANDTH):
        raise InputError(
            f"{value} is not a number of CPUs that a machine may have",
            hint=f"ask for {_LEAST_CPUS} to {MOST_CPUS}, with three digits after the point at most",
        )
    # The same number has one notation in the store.
    return Decimal(format_cpus(cpus))


def _number(value: object) -> object:
    """A whole number, which may be a text, as options are that ``none`` may be given to."""
    return int(value) if isinstance(value, str) and _DIGITS.fullmatch(value) else value


def _weight(value: object) -> object:
    value = _number(value)
    if isinstance(value, int) and not LEAST_WEIGHT <= value <= MOST_WEIGHT:
        raise InputError(
            f"{value} is not a weight",
            hint=f"ask for {LEAST_WEIGHT} to {MOST_WEIGHT}; the default is {DEFAULT_WEIGHT}",
        )
    return value


def _pin(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return format_cpu_list(parse_cpu_list(value)) if isinstance(value, str) else value


Cpus = Annotated[Decimal, BeforeValidator(_cpus)]
"""A number of CPUs with up to three digits after the point, which may be a text: ``1.5``, ``50%``.

In JSON it is a text."""

Weight = Annotated[int, BeforeValidator(_weight)]
"""A share beside other machines, 1 to 10000; a machine without one has 100."""


class _Strict(Part):
    model_config = ConfigDict(strict=True)


class CpuResources(_Strict):
    """CPU time of all processes of a machine."""

    guarantee: Cpus | None = None
    """The CPUs that it has if it needs them; None for what its weight gives it."""
    limit: Cpus | None = None
    """The CPUs that it uses at most; None for no limit."""
    weight: Weight | None = None
    """Its share if more CPU time is wanted than there is; None for the default."""
    pin: Annotated[str, BeforeValidator(_pin)] | None = None
    """The only CPUs of the host on which it runs, as ``0-3,8``; None for all."""
    numa_node: Annotated[int, BeforeValidator(_number), Field(ge=0, le=LAST_NODE)] | None = None
    """The node of the host that has its memory, and its CPUs if it is not pinned; None for any."""

    @model_validator(mode="after")
    def _guarantee_is_in_limit(self) -> Self:
        if self.guarantee is not None and self.limit is not None and self.guarantee > self.limit:
            raise InputError(
                f"the guarantee of {counted(format_cpus(self.guarantee), 'CPU')} is above the"
                " limit of"
                f" {format_cpus(self.limit)}",
                hint="raise the limit, or lower the guarantee",
            )
        pinned = None if self.pin is None else len(parse_cpu_list(self.pin))
        if pinned is not None and self.guarantee is not None and self.guarantee > pinned:
            raise InputError(
                f"the guarantee of {counted(format_cpus(self.guarantee), 'CPU')} is above the"
                f" {counted(pinned, 'CPU')} that it is pinned to: {self.pin}",
                hint="pin it to more CPUs, or lower the guarantee",
            )
        return self


def _yes_or_no(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value not in _YES_OR_NO:
        raise InputError(f"{value!r} is neither yes nor no", hint="write yes or no")
    return _YES_OR_NO[value]


class MemoryResources(_Strict):
    """The host's memory that a machine's processes have."""

    guarantee: Bytes | None = None
    """Bytes of the guest's memory that the host keeps for it; None for all of it."""
    limit: Bytes | None = None
    """Bytes that all its processes have at most, with what they need beside the guest's memory."""
    swap: Annotated[bool, BeforeValidator(_yes_or_no)] | None = None
    """Whether the host may swap it out; None for the host's own setting."""
    hugepages: Annotated[bool, BeforeValidator(_yes_or_no)] | None = None
    """Whether the guest's memory is in hugepages of the host; None for no."""
    merge: Annotated[bool, BeforeValidator(_yes_or_no)] | None = None
    """Whether the host may merge equal pages of it with others' (KSM); None for no."""

    @model_validator(mode="after")
    def _sizes_are_possible(self) -> Self:
        for what, size in (("guarantee", self.guarantee), ("limit", self.limit)):
            if size is not None:
                require_size(f"the memory {what}", size, SMALLEST_MEMORY, LARGEST_MEMORY)
                require_whole_mib(f"the memory {what}", size)
        return self


def _require_rate(what: str, rate: int | None) -> None:
    if rate is not None:
        require_size(what, rate, SMALLEST_RATE, LARGEST_MEMORY)


class DiskResources(_Strict):
    """Reading and writing of all disks of a machine together."""

    iops: Annotated[int, BeforeValidator(_number), Field(ge=1, le=10**9)] | None = None
    """Requests a second at most; None for no limit."""
    rate: Bytes | None = None
    """Bytes a second at most; None for no limit."""
    weight: Weight | None = None
    """Its share if more is wanted than the host's disks do; None for the default."""

    @model_validator(mode="after")
    def _rate_is_possible(self) -> Self:
        _require_rate("the disk rate", self.rate)
        return self


class NetworkResources(_Strict):
    """Traffic of all network cards of a machine together."""

    receive: Bytes | None = None
    """Bytes a second to the guest at most; None for no limit."""
    send: Bytes | None = None
    """Bytes a second from the guest at most; None for no limit."""

    @model_validator(mode="after")
    def _rates_are_possible(self) -> Self:
        _require_rate("the receive rate", self.receive)
        _require_rate("the send rate", self.send)
        return self


def _network(value: object) -> object:
    """``10M`` for both directions, ``10M/2M`` for what is received and what is sent."""
    if value is None:
        return NetworkResources()
    if not isinstance(value, str):
        return value
    receive, slash, send = value.partition("/")
    return NetworkResources(receive=_rate(receive), send=_rate(send if slash else receive))


Rates = BeforeValidator(_network)
"""Reads rates from ``10M`` or ``10M/2M``."""


def _rate(text: str) -> int | None:
    return None if text.strip() == _NONE else parse_size(text)


class Resources(_Strict):
    """What a machine gets of its host. Without values it shares with others as processes do."""

    cpu: CpuResources = CpuResources()
    memory: MemoryResources = MemoryResources()
    disk: DiskResources = DiskResources()
    network: Annotated[NetworkResources, BeforeValidator(_network)] = NetworkResources()
    pids: (
        Annotated[int, BeforeValidator(_number), Field(ge=LEAST_PROCESSES, le=MOST_PROCESSES)]
        | None
    ) = None
    """Processes and threads of the host that it has at most; None for Cerne's own limit."""

    @property
    def is_empty(self) -> bool:
        """Whether it has no values."""
        return self == Resources()


_WEIGHTS = f"{LEAST_WEIGHT} to {MOST_WEIGHT}; {DEFAULT_WEIGHT} is the default"


def _flag(word: str, text: str, metavar: str, default: str = "") -> Flag:
    return Flag(
        text, word=word, metavar=metavar, default=default, uses=("make", "set"), removable=True
    )


RESOURCE_FLAGS = (
    _flag("cpu_guarantee", "CPUs that it has if it needs them, such as 1.5 or 50%.", "CPUS"),
    _flag("cpu_limit", "CPUs that it uses at most, such as 1.5 or 50%.", "CPUS"),
    _flag("cpu_weight", f"Its share of CPU time among all machines: {_WEIGHTS}.", "NUMBER"),
    _flag("cpu_pin", "The only CPUs of this host on which it runs, such as 0-3,8.", "LIST"),
    _flag("numa_node", "The NUMA node of this host for its memory and its CPUs.", "NUMBER"),
    _flag(
        "memory_guarantee",
        "The part of its memory that this host promises to it, such as 256M.",
        "SIZE",
        "all of it",
    ),
    _flag("memory_limit", "Memory that all its processes have at most, such as 1G.", "SIZE"),
    _flag("memory_swap", "Whether this host may swap its memory out.", "yes|no"),
    _flag(
        "memory_hugepages",
        "Whether its guest's memory is in hugepages that this host has set aside.",
        "yes|no",
        "no",
    ),
    _flag(
        "memory_merge",
        "Whether this host may merge its memory with equal memory of others (KSM).",
        "yes|no",
        "no",
    ),
    _flag("disk_iops", "Requests a second to all its disks at most.", "NUMBER"),
    _flag("disk_rate", "Bytes a second of all its disks at most, such as 20M.", "SIZE"),
    _flag("disk_weight", f"Its share of this host's disks: {_WEIGHTS}.", "NUMBER"),
    _flag("network_rate", "Bytes a second to and from its network at most.", "SIZE|RECEIVED/SENT"),
    _flag(
        "pids_limit",
        f"Processes and threads of this host that it has at most, {LEAST_PROCESSES} or more.",
        "NUMBER",
    ),
)
"""The options for values of `Resources`; `none` for an option of `cerne set` removes the value."""

RESOURCE_WORDS = {
    "cpu_guarantee": "cpu.guarantee",
    "cpu_limit": "cpu.limit",
    "cpu_weight": "cpu.weight",
    "cpu_pin": "cpu.pin",
    "numa_node": "cpu.numa_node",
    "memory_guarantee": "memory.guarantee",
    "memory_limit": "memory.limit",
    "memory_swap": "memory.swap",
    "memory_hugepages": "memory.hugepages",
    "memory_merge": "memory.merge",
    "disk_iops": "disk.iops",
    "disk_rate": "disk.rate",
    "disk_weight": "disk.weight",
    _NETWORK: "network",
    "pids_limit": "pids",
}
"""The shorter names of values of `Resources`, and where they are."""


def asked_resources(
    asked: Mapping[str, object], present: Resources | None = None
) -> dict[str, object]:
    """The values of the present resources with those of these shorter names changed, unchecked.

    The text ``none`` removes a value.
    """
    fields: dict[str, object] = (present or Resources()).model_dump()
    for word, value in asked.items():
        part, _, name = RESOURCE_WORDS[word].partition(".")
        given = None if value == _NONE else value
        if not name:
            fields[part] = given
            continue
        values = fields[part]
        assert isinstance(values, dict)
        values[name] = given
    return fields


def shown_resources(resources: Resources) -> dict[str, str]:
    """The values by their shorter names, as texts for people."""
    found = {
        word: _shown(word, value)
        for word, place in RESOURCE_WORDS.items()
        if (value := _value_at(resources, place)) is not None
    }
    if resources.network == NetworkResources():
        del found[_NETWORK]
    return found


def _value_at(resources: Resources, place: str) -> object:
    value: object = resources
    for name in place.split("."):
        value = getattr(value, name)
    return value


def _shown(word: str, value: object) -> str:
    if isinstance(value, NetworkResources):
        rates = [format_size(each) if each else _NONE for each in (value.receive, value.send)]
        return "/".join(dict.fromkeys(rates))
    if isinstance(value, Decimal):
        return format_cpus(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    sizes = ("memory_guarantee", "memory_limit", "disk_rate")
    return format_size(value) if isinstance(value, int) and word in sizes else str(value)
