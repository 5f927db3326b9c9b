"""What a person asks for: one machine, as the command line, Python and files all say it.

A specification is immutable and carries a version, so that a stored one is read for what it is.
Sizes and ports may be written as people write them (``512M``, ``8080:80``); they are kept as
numbers. Everything that can be refused without looking at the host is refused here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from cerne.errors import DamagedError, InputError
from cerne.spec.limits import (
    DEFAULT_CPU_WEIGHT,
    LARGEST_DISK,
    LARGEST_MEMORY,
    LEAST_CPU_WEIGHT,
    LONGEST_LABEL,
    MOST_CPU_WEIGHT,
    MOST_CPUS,
    MOST_LABELS,
    ROOT_SERIAL,
    SERIAL,
    SLOTS,
    SMALLEST_DISK,
    SMALLEST_MEMORY,
)
from cerne.spec.names import check_name
from cerne.spec.network import NetworkKind, parse_network
from cerne.spec.ports import PublishedPort, check_port, parse_publish
from cerne.units import MIB, format_size, parse_size

_DISK_OPTION = re.compile(r"(?P<rest>.+):(?:(?P<ro>ro)|format=(?P<format>[^:/]+))", re.DOTALL)
_SERIAL = re.compile(SERIAL, re.ASCII)


def _bytes(value: object) -> object:
    return parse_size(value) if isinstance(value, str) else value


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


DiskFormat = Literal["raw", "qcow2"]
"""How a disk is laid out in its file."""


class Mount(_Part):
    """A directory of the host, at a place in the guest."""

    source: Path
    target: str
    read_only: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """The mount that ``SOURCE:TARGET[:ro|:rw]`` names.

        Raises:
            InputError: it is written otherwise, or the guest's path is not absolute.
        """
        # From its end: the path of a directory of the host may have colons.
        paths, separator, mode = text.rpartition(":")
        if not separator or mode not in ("ro", "rw"):
            paths, mode = text, "rw"
        source, _, target = paths.rpartition(":")
        if not source or not target.startswith("/"):
            raise InputError(
                f"{text!r} is not a mount",
                hint="write it as SOURCE:TARGET or SOURCE:TARGET:ro; TARGET is an absolute path"
                " without a colon",
            )
        return cls(source=Path(source), target=target, read_only=mode == "ro")


class DataDisk(_Part):
    """A disk beside the root disk, which comes and goes while the machine runs."""

    serial: str
    """What its guest knows it by (``/sys/block/vd?/serial``, ``/dev/disk/by-id/virtio-SERIAL``)."""
    slot: Annotated[int, Field(ge=0, lt=SLOTS)]
    size: Annotated[int | None, BeforeValidator(_bytes)] = None
    """Bytes of a disk of the machine's own, made for it; None for one that is named by `path`."""
    path: Path | None = None
    """A file or a device of the host, which stays what it is."""
    format: DiskFormat | None = None
    """As the file at `path` was found when the disk was added: a guest may make it look like
    another. None for a file that nobody has looked at, and for a disk of the machine's own."""
    read_only: bool = False

    @property
    def own(self) -> bool:
        """Whether it is the machine's, and goes where the machine goes."""
        return self.path is None

    @property
    def read_as(self) -> DiskFormat:
        """The format in which it is read and written.

        Raises:
            DamagedError: nobody has looked at its file.
        """
        if self.own:
            return "qcow2"
        if self.format is None:
            raise DamagedError(f"the format of the disk {self.path} is not known")
        return self.format

    @classmethod
    def parse(cls, text: str, serial: str, slot: int, *, read_only: bool = False) -> Self:
        """The disk that ``SIZE`` or ``PATH[:ro][:format=FORMAT]`` names.

        Raises:
            InputError: there is no such format.
        """
        with suppress(InputError):
            return cls(serial=serial, slot=slot, size=parse_size(text), read_only=read_only)
        named = None
        while match := _DISK_OPTION.fullmatch(text):
            text = match["rest"]
            named = match["format"] or named
            read_only = read_only or match["ro"] is not None
        return cls(
            serial=serial,
            slot=slot,
            path=Path(text),
            format=_format(named),
            read_only=read_only,
        )


class ExtraNic(_Part):
    """A network card beside the first, which comes and goes while the machine runs."""

    slot: Annotated[int, Field(ge=0, lt=SLOTS)]
    network: str = "user"
    """``user`` or ``tap:INTERFACE``."""


def _format(named: str | None) -> DiskFormat | None:
    match named:
        case None | "raw" | "qcow2":
            return named
    raise InputError(
        f"{named!r} is not a format of a machine's disk",
        hint="write format=raw or format=qcow2, or leave it out: Cerne looks at the file",
    )


def free_slot(disks: Sequence[DataDisk], nics: Sequence[ExtraNic] = ()) -> int:
    """The first slot that none of these is in.

    Raises:
        InputError: all are taken.
    """
    taken = {disk.slot for disk in disks} | {nic.slot for nic in nics}
    for slot in range(SLOTS):
        if slot not in taken:
            return slot
    raise InputError(
        f"a machine has no more than {SLOTS} disks and network cards that come and go",
        hint="take one out first: cerne disk detach, cerne nic detach",
    )


def free_serial(disks: Sequence[DataDisk]) -> str:
    """A serial that none of these has."""
    taken = {disk.serial for disk in disks}
    return next(name for number in count(1) if (name := f"data{number}") not in taken)


def _data_disks(value: object) -> object:
    if not isinstance(value, list | tuple):
        return value
    disks: list[object] = []
    for each in value:
        known = [disk for disk in disks if isinstance(disk, DataDisk)]
        if isinstance(each, str):
            disks.append(DataDisk.parse(each, free_serial(known), free_slot(known)))
        else:
            disks.append(each)
    return disks


def _port(value: object) -> object:
    if isinstance(value, int):
        raise InputError(
            f"{value} is not a published port: it does not say which port of the guest",
            hint=f"write '{value}:{value}', the port of this host before the guest's",
        )
    return parse_publish(value) if isinstance(value, str) else value


def published_ports(ports: Iterable[PublishedPort | str]) -> tuple[PublishedPort, ...]:
    """The ports that are asked for, each checked.

    Raises:
        InputError: one cannot be published, or is asked for twice.
    """
    try:
        found = TypeAdapter(tuple[Port, ...]).validate_python(tuple(ports))
    except ValidationError as error:
        raise InputError(
            f"{error.errors()[0]['input']!r} is not a published port",
            hint="write it as '8080:80', the port of this host before the guest's",
        ) from error
    for port in found:
        check_port(port)
    taken = [(port.host_address, port.host_port, port.protocol) for port in found if port.host_port]
    _check_unique(taken, "port")
    return found


Port = Annotated[PublishedPort, BeforeValidator(_port)]


def _mount(value: object) -> object:
    return Mount.parse(value) if isinstance(value, str) else value


class MachineSpec(_Part):
    """What one machine is to be. Make one with `machine_spec`, which refuses in words.

    Whatever it is made from, a call, the store or a file of another host, its values are checked
    here, and an `InputError` says which is wrong. What it names on a host is not looked at.
    """

    version: Literal[1] = 1
    name: str
    image: str = "tiny"
    cpus: int = 1
    memory: Annotated[int, BeforeValidator(_bytes)] = 512 * MIB
    """Bytes of guest memory."""
    disk: Annotated[int | None, BeforeValidator(_bytes)] = None
    """Bytes of the root disk; None for the image's own size."""
    balloon: Annotated[int | None, BeforeValidator(_bytes)] = None
    """Bytes of its memory that its guest may have now; None for all."""
    cpu_weight: int | None = None
    """Its share of CPU time beside others, as cgroup v2's cpu.weight has it: 100 is everybody's;
    None for no group of its own."""
    network: str = "user"
    """``user``, ``none`` or ``tap:INTERFACE``."""
    ports: tuple[Port, ...] = ()
    mounts: tuple[Annotated[Mount, BeforeValidator(_mount)], ...] = ()
    data_disks: Annotated[tuple[DataDisk, ...], BeforeValidator(_data_disks)] = ()
    extra_nics: tuple[ExtraNic, ...] = ()
    labels: dict[str, str] = Field(default_factory=dict)
    engine: Literal["auto", "native", "qemu"] = "auto"

    @model_validator(mode="after")
    def _values_are_possible(self) -> Self:
        _check(self)
        return self


def machine_spec(**fields: object) -> MachineSpec:
    """A specification of these fields (see `MachineSpec`), all of them checked.

    Raises:
        InputError: a field is unknown, or its value cannot be.
    """
    try:
        return MachineSpec.model_validate(fields)
    except ValidationError as error:
        raise InputError(_plainly(error), hint="see: cerne create --help") from error


def _plainly(error: ValidationError) -> str:
    """What is wrong with the first field that is, in our words and not in pydantic's."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"a machine has no {where}"
    if not first["msg"].startswith("Input should be "):
        return f"{where} {first['input']!r} was refused: {first['msg']}"
    wanted = (
        first["msg"]
        .removeprefix("Input should be ")
        .replace("a valid integer", "an integer")
        .replace("a valid", "a")
    )
    if first["type"] != "literal_error":
        wanted = wanted.partition(",")[0]
    return f"{where} is to be {wanted}, not {first['input']!r}"


def adjusted_spec(spec: MachineSpec, changes: Mapping[str, int]) -> MachineSpec:
    """A specification with other values of what can be changed while a machine runs.

    Raises:
        InputError: a value cannot be.
    """
    adjusted = spec.model_copy(update=changes)
    _check_balloon(adjusted)
    _check_cpu_weight(adjusted)
    return adjusted


def stored_spec(text: str, whose: str) -> MachineSpec:
    """The specification that the store holds as JSON, of a machine or a pool.

    Raises:
        DamagedError: it is none of this version.
    """
    try:
        return MachineSpec.model_validate_json(text)
    except (ValidationError, InputError) as error:
        raise DamagedError(
            f"the stored specification of {whose} cannot be read",
            hint="if another version of Cerne wrote it, use that one; else remove it",
        ) from error


def check_network(text: str, *, has_ports: bool) -> NetworkKind:
    """The kind of network that a text names.

    Raises:
        InputError: it names none, or one that has no ports to publish.
    """
    kind = parse_network(text).kind
    if has_ports and kind is not NetworkKind.USER:
        raise InputError(
            f"a machine with the network {text!r} publishes no ports",
            hint="leave --publish out: with a tap the guest has an address of its own",
        )
    return kind


def _check(spec: MachineSpec) -> None:
    check_name(spec.name)
    if not 1 <= spec.cpus <= MOST_CPUS:
        raise InputError(
            f"a machine cannot have {spec.cpus} CPUs", hint=f"ask for 1 to {MOST_CPUS}"
        )
    _check_size("memory", spec.memory, SMALLEST_MEMORY, LARGEST_MEMORY)
    if spec.memory % MIB:
        raise InputError(f"memory of {spec.memory} bytes", hint="ask for a whole number of MiB")
    if spec.disk is not None:
        _check_size("a disk", spec.disk, SMALLEST_DISK, LARGEST_DISK)
    _check_balloon(spec)
    _check_cpu_weight(spec)
    published_ports(spec.ports)
    _check_unique([mount.target for mount in spec.mounts], "mount's target")
    check_devices(spec)
    check_network(spec.network, has_ports=bool(spec.ports))
    for mount in spec.mounts:
        _check_target(mount)
    _check_labels(spec.labels)


def check_devices(spec: MachineSpec) -> None:
    """Refuse disks and network cards that no machine can have.

    Raises:
        InputError: there are such.
    """
    _check_unique([disk.serial for disk in spec.data_disks], "disk's serial")
    slots = [disk.slot for disk in spec.data_disks] + [nic.slot for nic in spec.extra_nics]
    _check_unique(slots, "slot")
    _check_unique([disk.path for disk in spec.data_disks if disk.path], "disk")
    for nic in spec.extra_nics:
        if parse_network(nic.network).kind is NetworkKind.NONE:
            raise InputError(
                f"a network card on the network {nic.network!r}",
                hint="write user or tap:INTERFACE",
            )
    for disk in spec.data_disks:
        if not _SERIAL.fullmatch(disk.serial) or disk.serial == ROOT_SERIAL:
            raise InputError(
                f"{disk.serial!r} is no serial of a disk",
                hint="take up to 20 letters, digits, dots, dashes and underscores",
            )
        if (disk.size is None) == (disk.path is None):
            raise InputError(f"the disk {disk.serial} has either a size or a path")
        if disk.size is not None:
            _check_size("a disk", disk.size, SMALLEST_DISK, LARGEST_DISK)
            if disk.size % MIB:
                raise InputError(
                    f"a disk of {disk.size} bytes", hint="ask for a whole number of MiB"
                )


def _check_size(what: str, size: int, smallest: int, largest: int) -> None:
    if not smallest <= size <= largest:
        raise InputError(
            f"{what} of {format_size(size)} cannot be",
            hint=f"ask for {format_size(smallest)} to {format_size(largest)}",
        )


def _check_balloon(spec: MachineSpec) -> None:
    if spec.balloon is None:
        return
    _check_size("a guest's memory", spec.balloon, SMALLEST_MEMORY, spec.memory)
    if spec.balloon % MIB:
        raise InputError(
            f"a balloon that leaves {spec.balloon} bytes", hint="ask for a whole number of MiB"
        )


def _check_cpu_weight(spec: MachineSpec) -> None:
    weight = spec.cpu_weight
    if weight is not None and not LEAST_CPU_WEIGHT <= weight <= MOST_CPU_WEIGHT:
        raise InputError(
            f"{weight} is no CPU weight",
            hint=f"ask for {LEAST_CPU_WEIGHT} to {MOST_CPU_WEIGHT};"
            f" {DEFAULT_CPU_WEIGHT} is everybody's",
        )


def _check_unique(values: Sequence[object], what: str) -> None:
    for value in values:
        if values.count(value) > 1:
            raise InputError(f"the same {what} is asked for twice", hint="name each one once")


def _check_target(mount: Mount) -> None:
    if not mount.target.startswith("/") or "\0" in mount.target:
        raise InputError(f"{mount.target!r} is no place in the guest", hint="give an absolute path")


def _check_labels(labels: Mapping[str, str]) -> None:
    if len(labels) > MOST_LABELS:
        raise InputError(f"{len(labels)} labels are too many", hint=f"give at most {MOST_LABELS}")
    for text in (*labels, *labels.values()):
        if len(text) > LONGEST_LABEL:
            raise InputError(
                f"the label {text[:40]!r}… has {len(text)} characters",
                hint=f"write at most {LONGEST_LABEL}",
            )
