"""The specification of one machine, the same for the command line, Python and files.

A specification is immutable and carries a version (`cerne.spec.upgrade`). Sizes, ports, disks and
mounts may be texts (``512M``, ``8080:80``); they are kept as numbers and models. All wrong values
that can be found without access to a host are refused here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from cerne.errors import SEE_OPTIONS, InputError
from cerne.spec.disk import Disk, free_serial
from cerne.spec.flag import Flag
from cerne.spec.limits import (
    HUGEPAGE,
    LARGEST_MEMORY,
    LONGEST_LABEL,
    MOST_CPUS,
    MOST_LABELS,
    ROOT_SERIAL,
    SLOTS,
    SMALLEST_MEMORY,
)
from cerne.spec.mount import Mount
from cerne.spec.names import check_name
from cerne.spec.network import NetworkKind, is_named
from cerne.spec.nic import Nic, nic_fields
from cerne.spec.pairs import parse_pairs
from cerne.spec.part import (
    Bytes,
    Part,
    require_cpus,
    require_size,
    require_unique,
    require_whole_mib,
)
from cerne.spec.ports import PublishedPort
from cerne.spec.resources import (
    RESOURCE_FLAGS,
    RESOURCE_WORDS,
    Resources,
    asked_resources,
    format_cpus,
)
from cerne.units import MIB, counted, format_size

_MEMORY = "memory"
_BALLOON = "balloon"
_NONE = "none"
_OWN_CPUS = 1
"""CPUs that a machine's devices may use beside its vCPUs."""


def _disks(value: object) -> object:
    if not isinstance(value, list | tuple):
        return value
    disks: list[object] = []
    for each in value:
        known = [disk for disk in disks if isinstance(disk, Disk)]
        if isinstance(each, str):
            disks.append(Disk.parse(each, free_serial(known), _free_slot(known)))
        else:
            disks.append(each)
    return disks


def _mount(value: object) -> object:
    return Mount.parse(value) if isinstance(value, str) else value


def _labels(value: object) -> object:
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        return value
    return parse_pairs(value, "the label")


class MachineSpec(Part):
    """The specification of one machine. Make one with `machine_spec`, which explains errors.

    Its values are checked here for every source: a call, the store or a file of another host. An
    `InputError` says which value is wrong. Paths and names on a host are not checked.
    """

    version: Literal[3] = 3
    name: str
    image: str = "tiny"
    cpus: Annotated[int, Flag("Virtual CPUs.", "number", uses=("make", "template", "set"))] = 1
    max_cpus: Annotated[
        int | None,
        Flag(
            "Virtual CPUs to which it can grow while it runs.",
            "number",
            default="no more",
            uses=("make", "template", "set"),
        ),
    ] = None
    """The virtual CPUs for which its guest's kernel has room; None for no more than it has."""
    memory: Annotated[
        Bytes, Flag("Memory, such as 256M or 2G.", "size", uses=("make", "template", "set"))
    ] = 512 * MIB
    """Bytes of guest memory."""
    balloon: Annotated[
        Bytes | None,
        Flag(
            "Memory that the guest may use now, such as 256M; at most the machine's memory.",
            "size",
            uses=("set",),
            removable=True,
        ),
    ] = None
    """Bytes of its memory that its guest may use now; None for all."""
    resources: Annotated[
        Resources,
        *RESOURCE_FLAGS,
    ] = Resources()
    """Guarantees, limits and weights; the options set one value each."""
    disks: Annotated[
        tuple[Disk, ...],
        BeforeValidator(_disks),
        Flag(
            "Size of the root disk, such as 20G.",
            "size",
            word="disk",
            default="the image's",
            uses=("make", "template", "set"),
        ),
        Flag(
            "An additional disk: new and empty, or a file of this host; may be repeated.",
            "list",
            word="data_disks",
            names=("--data-disk",),
            metavar="SIZE|PATH[:ro][:format=raw]",
        ),
    ] = ()
    """The root disk, if its size differs from the image's, and all other disks."""
    nics: Annotated[
        tuple[Nic, ...],
        Flag(
            "user, none, tap:INTERFACE for a tap of this host, or a network's name with options"
            " such as address=10.20.0.5; may be repeated, for a card each.",
            "list",
            word="network",
            metavar="NETWORK",
            default=Nic().network,
            uses=("make", "template", "set"),
        ),
        Flag(
            "[ADDRESS:]HOST:GUEST[/udp], also ranges such as 8080-8082:80-82; may be repeated.",
            "list",
            word="ports",
            names=("--publish", "-p"),
            metavar="PORTS",
            uses=("make", "set"),
            removable=True,
        ),
        Flag(
            "On a network with a name: what alone it may reach outside, as a subnet or a DNS name,"
            " and a port; may be repeated.",
            "list",
            names=("--allow",),
            word="allow",
            metavar="TARGET",
        ),
        Flag(
            "A port of this host's loopback that the guest reaches at its gateway; all others are"
            " closed; may be repeated.",
            "list",
            names=("--host-access",),
            word="host_access",
            metavar="PORT",
            uses=("make", "set"),
            removable=True,
        ),
        Flag(
            "all, or none: on a network with a name, whether it may reach what is outside.",
            word="egress",
            metavar="all|none",
            default=Nic().egress,
        ),
    ] = (Nic(),)
    """The first card, which has no slot, if there is a network, and the attached cards."""
    mounts: Annotated[
        tuple[Annotated[Mount, BeforeValidator(_mount)], ...],
        Flag(
            "SOURCE:TARGET[:ro], a directory of this host; may be repeated.",
            "list",
            names=("--mount",),
            metavar="PATHS",
            uses=("make", "set"),
            removable=True,
        ),
    ] = ()
    labels: Annotated[
        dict[str, str],
        BeforeValidator(_labels),
        Flag(
            "A free text, which `cerne inspect` shows; may be repeated.",
            "list",
            names=("--label",),
            metavar="KEY=VALUE",
        ),
    ] = Field(default_factory=dict)
    isolation: Annotated[
        Literal["standard", "strict"],
        Flag(
            "standard, or strict: shares no core's threads and no memory with others.",
            metavar="standard|strict",
        ),
    ] = "standard"
    identity: Annotated[
        Literal["own", "kept"],
        Flag(
            "own, or kept: the guest of a machine that was made of it keeps its source's machine-id"
            " and keys of SSH."
        ),
    ] = "own"
    engine: Annotated[
        Literal["auto", "native", "qemu"],
        Flag(
            "What runs it: our own VMM, QEMU, or the faster one here.",
            metavar="auto|native|qemu",
            uses=("make", "template"),
        ),
    ] = "auto"

    @property
    def most_cpus(self) -> int:
        """The virtual CPUs to which it can grow while it runs."""
        return self.max_cpus or self.cpus

    @property
    def strict(self) -> bool:
        """Whether it shares neither a core's threads nor memory with other machines."""
        return self.isolation == "strict"

    @property
    def root_size(self) -> int | None:
        """Bytes of the root disk; None for the image's own size."""
        return next((disk.size for disk in self.disks if disk.is_root), None)

    @property
    def data_disks(self) -> tuple[Disk, ...]:
        """The disks without the root disk."""
        return tuple(disk for disk in self.disks if not disk.is_root)

    @property
    def network(self) -> str:
        """The network of the first card; ``none`` if there is no such card."""
        return next((nic.network for nic in self.nics if nic.slot is None), NetworkKind.NONE.value)

    @property
    def ports(self) -> tuple[PublishedPort, ...]:
        """The published ports."""
        return tuple(port for nic in self.nics for port in nic.ports)

    @property
    def added_nics(self) -> tuple[Nic, ...]:
        """The network cards without the first."""
        return tuple(nic for nic in self.nics if nic.slot is not None)

    @property
    def free_slot(self) -> int:
        """The first slot without a disk or a network card.

        Raises:
            InputError: all slots are taken.
        """
        return _free_slot(self.disks, self.nics)

    def changed(self, **fields: object) -> Self:
        """The same specification with other values of these fields, all checked.

        It takes the shorter names of `machine_spec` too, such as ``cpu_weight``. The text ``none``
        removes all ports or mounts, and the balloon.

        Raises:
            InputError: a value is not valid.
        """
        values = {**dict(self), **fields}
        if said := _taken(values, RESOURCE_WORDS):
            values["resources"] = asked_resources(said, self.resources)
        if said := _taken(values, ("disk",)):
            values["disks"] = _asked_disks(said["disk"], self.data_disks)
        if said := _taken(values, ("network", "ports", "host_access")):
            values["nics"] = self._other_cards(said)
        values["mounts"] = _listed(values["mounts"])
        if values[_BALLOON] == _NONE:
            values[_BALLOON] = None
        try:
            return self.model_validate(values)
        except ValidationError as error:
            message, field = _plainly(error, fields)
            raise InputError(message, hint=SEE_OPTIONS, field=field) from error

    def _other_cards(self, said: Mapping[str, object]) -> list[object]:
        """Its cards with other networks, or with other ports of the first one."""
        first = next((nic for nic in self.nics if nic.slot is None), None)
        ports = {word: _listed(said[word]) for word in ("ports", "host_access") if word in said}
        if "network" in said:
            kept = {}
            if first is not None:
                kept = {"ports": first.ports, "host_access": first.host_access}
            return [*_cards(said["network"], {**kept, **ports})]
        present = Nic(network=NetworkKind.USER) if first is None else first
        return [{**dict(present), **ports}, *self.added_nics]

    def on_network(self, network: str, ports: Iterable[PublishedPort | str] = ()) -> Self:
        """The same specification with its first card on this network, with these published ports.

        The card keeps what it may reach, and no addresses.

        Raises:
            InputError: there is no such network, or it does not publish ports.
        """
        first = _cards(network, {"ports": tuple(ports)})
        named = is_named(str(nic_fields(network)["network"]))
        if first and self.nics and self.nics[0].slot is None and named:
            former = self.nics[0]
            first[0] = {
                "allow": former.allow,
                "egress": former.egress,
                "rate": former.rate,
                **first[0],
            }
        if first and self.nics and not network.startswith(f"{NetworkKind.TAP}:"):
            first[0] = {"host_access": self.nics[0].host_access, **first[0]}
        return self.changed(nics=[*first, *self.added_nics])

    def with_ports(self, ports: Iterable[PublishedPort]) -> Self:
        """The same specification with these published ports, in the order of `ports`."""
        left = iter(ports)
        nics = [
            nic.model_copy(update={"ports": tuple(islice(left, len(nic.ports)))})
            for nic in self.nics
        ]
        return self.model_copy(update={"nics": tuple(nics)})

    def copied(self) -> Self:
        """The same specification without what is one machine's alone: addresses and ports."""
        nics = [
            nic.model_copy(update={"ports": (), "address": None, "mac": None}) for nic in self.nics
        ]
        return self.model_copy(update={"nics": tuple(nics)})

    @field_validator("name")
    @classmethod
    def _name_is_one(cls, name: str) -> str:
        return check_name(name)

    @model_validator(mode="after")
    def _values_are_possible(self) -> Self:
        self._check_size()
        self._check_resources()
        _check_labels(self.labels)
        return self

    @model_validator(mode="after")
    def _devices_go_together(self) -> Self:
        require_unique([mount.target for mount in self.mounts], "mount's target")
        require_unique([disk.serial for disk in self.disks], "disk's serial")
        require_unique([disk.path for disk in self.disks if disk.path], "disk")
        devices = (*self.data_disks, *self.added_nics)
        require_unique([device.slot for device in devices], "slot")
        require_unique([nic.mac for nic in self.nics if nic.mac], "card's address")
        # Its name would lead to two addresses, and its answers leave by one card alone.
        require_unique([nic.network for nic in self.nics if nic.is_named], "network")
        require_unique([str(port) for port in self.ports if port.host_port], "port")
        if any(nic.slot is None for nic in self.nics[1:]):
            raise InputError(
                "a network card without a slot is not the first card",
                hint=f"give each other card a slot, 0 to {SLOTS - 1}",
            )
        return self

    def _check_size(self) -> None:
        require_cpus(self.cpus)
        if self.max_cpus is not None and not self.cpus <= self.max_cpus <= MOST_CPUS:
            raise InputError(
                f"max_cpus is {self.max_cpus}, to which a machine with"
                f" {counted(self.cpus, 'CPU')} does not grow",
                hint=f"ask for as many --max-cpus as --cpus or more, at most {MOST_CPUS}",
            )
        require_size(_MEMORY, self.memory, SMALLEST_MEMORY, LARGEST_MEMORY)
        require_whole_mib(_MEMORY, self.memory)
        if self.balloon is not None:
            require_size(_BALLOON, self.balloon, SMALLEST_MEMORY, self.memory)
            require_whole_mib(_BALLOON, self.balloon)

    def _check_resources(self) -> None:
        cpu, memory = self.resources.cpu, self.resources.memory
        if cpu.guarantee is not None and cpu.guarantee > self.cpus:
            raise InputError(
                f"the guarantee of {counted(format_cpus(cpu.guarantee), 'CPU')} is above the"
                f" {counted(self.cpus, 'CPU')} of the machine",
                hint=f"guarantee at most {self.cpus}, or give it more: --cpus",
            )
        if cpu.limit is not None and cpu.limit > self.cpus + _OWN_CPUS:
            raise InputError(
                f"the limit of {counted(format_cpus(cpu.limit), 'CPU')} limits nothing: the"
                " machine has"
                f" {self.cpus}, and its devices use at most {_OWN_CPUS} more",
                hint=f"for a part of one CPU, write a percentage: {format_cpus(cpu.limit)}%",
            )
        if memory.guarantee is not None and memory.guarantee > self.memory:
            raise InputError(
                f"{format_size(memory.guarantee)} of memory is guaranteed to a machine with"
                f" {format_size(self.memory)}",
                hint=f"guarantee at most {format_size(self.memory)}, or make a machine with more"
                " --memory",
            )
        if memory.hugepages and self.memory % HUGEPAGE:
            raise InputError(
                f"{format_size(self.memory)} of memory are not whole hugepages",
                hint=f"give an even number of megabytes: --memory {self.memory // HUGEPAGE * 2}M",
            )
        if memory.hugepages and memory.merge:
            raise InputError(
                "the host merges no hugepages",
                hint="leave --memory-hugepages or --memory-merge out",
            )
        if memory.merge and self.strict:
            raise InputError(
                "a machine of strict isolation shares no memory, which --memory-merge asks for",
                hint="leave --memory-merge out, or ask for --isolation standard",
            )
        if memory.limit is not None and memory.limit < self.memory:
            raise InputError(
                f"the memory limit of {format_size(memory.limit)} is below the machine's memory of"
                f" {format_size(self.memory)}: the host would end it",
                hint="limit it to more than its memory, by 128M at least for its own processes",
            )


def flags() -> dict[str, Flag]:
    """The table of fields: the names for `machine_spec`, and the options of commands."""
    found = {}
    for name, field in MachineSpec.model_fields.items():
        for flag in (each for each in field.metadata if isinstance(each, Flag)):
            default = flag.default or _shown(field.default, flag)
            found[flag.word or name] = replace(flag, default=default)
    return found


def _shown(default: object, flag: Flag) -> str:
    if isinstance(default, int):
        return format_size(default) if flag.kind == "size" else str(default)
    return default if isinstance(default, str) else ""


def machine_spec(**asked: object) -> MachineSpec:
    """Make a specification; all values are checked.

    In addition to the fields of `MachineSpec` it takes shorter ones: ``disk``, the root disk's
    size, and ``data_disks``, the others, for ``disks``; ``network``, a text or a list of them, and
    ``ports``, ``allow``, ``host_access`` and ``egress`` of the first card for ``nics``;
    ``cpu_weight`` for ``resources``.

    Raises:
        InputError: a field is unknown, or its value is not valid.
    """
    fields = dict(asked)
    if said := _taken(fields, ("disk", "data_disks"), "disks"):
        fields["disks"] = _asked_disks(said.get("disk"), said.get("data_disks", ()))
    if said := _taken(fields, _CARD_WORDS, "nics"):
        fields["nics"] = _cards(said.pop("network", NetworkKind.USER), said)
    if said := _taken(fields, RESOURCE_WORDS, "resources"):
        fields["resources"] = asked_resources(said)
    try:
        return MachineSpec.model_validate(fields)
    except ValidationError as error:
        message, field = _plainly(error, asked)
        raise InputError(message, hint=_what_to_write(error), field=field) from error


def _taken(
    fields: dict[str, object], words: Iterable[str], field: str | None = None
) -> dict[str, object]:
    """Remove the values of these names, which replace a field, and return them."""
    said = {word: fields.pop(word) for word in words if word in fields}
    if said and field in fields:
        raise InputError(
            f"{field} and {' and '.join(said)} are given, which set the same field",
            hint=f"put all of it in {field}, or leave {field} out",
        )
    return said


def _listed(values: object) -> object:
    """The values of a list, which ``none`` empties."""
    return () if values in (_NONE, [_NONE], (_NONE,)) else values


def _asked_disks(root_size: object, others: object) -> object:
    root = [] if root_size is None else [{"serial": ROOT_SERIAL, "size": root_size}]
    return [*root, *others] if isinstance(others, list | tuple) else others


def _cards(networks: object, first: Mapping[str, object]) -> list[Mapping[str, object]]:
    """The cards on these networks; `first` has the other fields of the first one.

    Slots are taken from the last, because disks take them from the first.
    """
    asked = networks if isinstance(networks, list | tuple) else (networks,)
    if asked == (NetworkKind.NONE,) or asked == [NetworkKind.NONE]:
        asked = () if not any(first.values()) else asked
    cards: list[Mapping[str, object]] = []
    for number, network in enumerate(asked):
        said = nic_fields(network) if isinstance(network, str) else {"network": network}
        cards.append({**said, **first} if not number else {**said, "slot": SLOTS - number})
    return cards


_CARD_WORDS = ("network", "ports", "allow", "host_access", "egress")
"""The shorter names of the values of the first card."""

_SAID = {"disk": "disks.0.size", "data_disks": "disks", "network": "nics.0.network"}
_SAID |= {word: f"nics.0.{word}" for word in _CARD_WORDS if word != "network"}
_SAID |= {word: f"resources.{place}" for word, place in RESOURCE_WORDS.items()}
"""The model's place of each shorter name, for errors."""


def _plainly(error: ValidationError, asked: Mapping[str, object]) -> tuple[str, str]:
    """The error of the first wrong field, in our words and not in pydantic's, and the field.

    The field is empty if the error does not begin with it.
    """
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    for word in (word for word, place in _SAID.items() if place == where and word in asked):
        where = word
    if first["type"] == "extra_forbidden":
        return f"a machine has no field {where}", ""
    if first["type"] == "missing":
        return f"a machine needs a {where}", ""
    if not first["msg"].startswith("Input should be "):
        return f"{where} {first['input']!r} was refused: {first['msg']}", where
    wanted = (
        first["msg"]
        .removeprefix("Input should be ")
        .replace("a valid integer", "an integer")
        .replace("a valid tuple", "a list")
        .replace("a valid dictionary or instance of ", "a text or a ")
        .replace("a valid string", "a text")
        .replace("a valid", "a")
        .replace("greater than or equal to", "at least")
        .replace("less than or equal to", "at most")
    )
    if first["type"] != "literal_error":
        wanted = wanted.partition(",")[0]
    return f"{where} must be {wanted}, not {first['input']!r}", where


def _what_to_write(error: ValidationError) -> str:
    """What to write instead, if the first wrong field says so."""
    first = error.errors()[0]
    if first["type"] == "missing":
        return f"give it one: {first['loc'][-1]}='web'"
    if first["type"] == "tuple_type" and isinstance(first["input"], str):
        return f"write it as [{first['input']!r}]"
    return SEE_OPTIONS


def _free_slot(disks: Sequence[Disk], nics: Sequence[Nic] = ()) -> int:
    taken = {device.slot for device in (*disks, *nics)}
    for slot in range(SLOTS):
        if slot not in taken:
            return slot
    raise InputError(
        f"all {SLOTS} slots of the machine for disks and network cards are taken",
        hint="detach one first: cerne disk detach, cerne nic detach",
    )


def _check_labels(labels: Mapping[str, str]) -> None:
    if len(labels) > MOST_LABELS:
        raise InputError(f"{len(labels)} labels are too many", hint=f"give at most {MOST_LABELS}")
    for text in (*labels, *labels.values()):
        if len(text) > LONGEST_LABEL:
            raise InputError(
                f"the label {text[:40]!r}… has {counted(len(text), 'character')}",
                hint=f"write at most {LONGEST_LABEL}",
            )
