"""What a VMM process is told by whoever starts it: JSON, in which every file is a descriptor.

The process inherits the descriptors, or is sent them when a machine forks, so that it need open
nothing by itself once it has given its privileges up.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from cerne.arch.x86 import layout
from cerne.devices.state import PlainState, SavedState, plain
from cerne.errors import DamagedError

if TYPE_CHECKING:
    from pathlib import Path

_LARGEST_DESCRIPTOR = 1 << 20
_MAC = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}", re.IGNORECASE)
"""An address of one card: the lowest bit of its first byte is zero."""
_LONGEST_TEXT = 65536
_MOST_CPUS = 1 << 12
_MOST_BYTES = 1 << 52

Descriptors = Callable[[int], int]
"""The descriptor that a number in the configuration stands for."""


class BootConfig(NamedTuple):
    """A kernel to boot."""

    kernel: int
    initrd: int | None
    command_line: str


class SavedConfig(NamedTuple):
    """A machine to go on with, as `cerne.vmm.snapshot` wrote it."""

    state: int
    memory: int


class FileConfig(NamedTuple):
    """One file of a disk."""

    descriptor: int
    format: str


class BackendConfig(NamedTuple):
    """A process that serves a device by vhost-user."""

    link: int
    """A Unix socket that is connected to it."""
    address: int | None = None
    """The socket at which it listens (O_PATH), to connect to it again when it was restarted."""
    leash: int | None = None
    """A socket to whoever ends it: it is written at an orderly end, and closed at any."""


class DiskConfig(NamedTuple):
    """One disk: its file and the backing files under it, the top first; or a backend's."""

    files: tuple[FileConfig, ...]
    serial: str = ""
    read_only: bool = False
    slot: int | None = None
    """The slot for devices that come and go, from 0 on; None for one that stays."""
    backend: BackendConfig | None = None


class ShareConfig(NamedTuple):
    """A directory of the host, which a backend serves."""

    tag: str
    backend: BackendConfig


class LinkKind(StrEnum):
    """What a network card's descriptor is."""

    STREAM = "stream"
    """A stream socket to passt."""
    TAP = "tap"
    """A tap, with virtio_net_hdr of 12 bytes before its frames."""


class NicConfig(NamedTuple):
    """One network card, and the host's end of its cable."""

    mac: str
    link: int
    kind: LinkKind = LinkKind.STREAM
    mtu: int | None = None
    """The largest packet of its network, where the guest is to be told."""
    vhost: int | None = None
    """An open /dev/vhost-net, by which the kernel moves a tap's frames; Python does without."""
    slot: int | None = None
    """As a disk's."""
    address: int | None = None
    """As a backend's, of a link that is a stream."""
    leash: int | None = None
    """As a backend's."""

    @property
    def descriptors(self) -> set[int]:
        """All descriptors in it."""
        optional = (self.vhost, self.address, self.leash)
        return {self.link, *(each for each in optional if each is not None)}


class VsockConfig(NamedTuple):
    """The sockets between a guest and its host (`cerne.vmm.vsock`)."""

    listener: int
    directory: int
    """The directory, to look up names in it."""


class BackendNicConfig(NamedTuple):
    """One network card that a backend serves."""

    mac: str
    backend: BackendConfig


class VmmConfig(NamedTuple):
    """One machine, with every file that its process may touch."""

    name: str
    identity: str
    """What stands in the process's command line, for people who look at it."""
    cpus: int
    memory: int
    """Bytes."""
    boot: BootConfig
    """What it boots, or boots again: a machine that goes on from a saved one may reboot too."""
    qmp: int
    """A listening Unix socket, as the console's and the agent's are."""
    console: int
    console_log: int
    agents: tuple[int, ...]
    ending: int
    """Where the process says how the machine ended."""
    saved: SavedConfig | None = None
    """Where it goes on from, if it does not boot; a forked child has its parent's memory."""
    disks: tuple[DiskConfig, ...] = ()
    nics: tuple[NicConfig, ...] = ()
    vsock: VsockConfig | None = None
    balloon: int | None = None
    """Bytes of its memory that the guest may have; None for all, or for what it had when saved."""
    backend_nics: tuple[BackendNicConfig, ...] = ()
    shares: tuple[ShareConfig, ...] = ()
    engine_log: int | None = None
    """What a forked child has instead of its parent's standard output and error."""
    registration: int | None = None
    """What a forked child registers itself by, first of all (`cerne.vmm.registration`)."""
    emulated: bool = False
    """Whether this host's kernel emulates guests' kernel code (`cerne.host.probe`)."""

    @property
    def backends(self) -> tuple[BackendConfig, ...]:
        """All processes that serve devices of it: its memory is shared with them."""
        return (
            *(disk.backend for disk in self.disks if disk.backend is not None),
            *(nic.backend for nic in self.backend_nics),
            *(share.backend for share in self.shares),
        )

    @property
    def descriptors(self) -> set[int]:
        """All descriptors in it."""
        numbers = {self.qmp, self.console, self.console_log, self.ending, *self.agents}
        numbers.update(file.descriptor for disk in self.disks for file in disk.files)
        if self.engine_log is not None:
            numbers.add(self.engine_log)
        for nic in self.nics:
            numbers |= nic.descriptors
        if self.vsock is not None:
            numbers.update((self.vsock.listener, self.vsock.directory))
        numbers.add(self.boot.kernel)
        if self.boot.initrd is not None:
            numbers.add(self.boot.initrd)
        if self.saved is not None:
            numbers.update((self.saved.state, self.saved.memory))
        for backend in self.backends:
            optional = (backend.address, backend.leash)
            numbers.update((backend.link, *(each for each in optional if each is not None)))
        return numbers

    def to_json(self) -> PlainState:
        """As plain JSON."""
        return plain(self)

    def write(self, path: Path) -> None:
        """Write it for a process to read."""
        path.write_text(json.dumps(self.to_json(), indent=1))

    @classmethod
    def read(cls, path: Path | str) -> VmmConfig:
        """Read what `write` wrote.

        Raises:
            DamagedError: it is something else.
        """
        try:
            with os.fdopen(os.open(path, os.O_RDONLY), "rb") as file:
                values = json.load(file)
        except (OSError, ValueError, RecursionError) as error:
            raise DamagedError(f"{path} is no configuration of a machine: {error}") from error
        if not isinstance(values, dict):
            raise DamagedError(f"{path} is no configuration of a machine")
        return cls.from_saved(SavedState("a machine's configuration", values), int)

    @classmethod
    def from_saved(cls, saved: SavedState, descriptors: Descriptors) -> VmmConfig:
        """What `to_json` said.

        Raises:
            DamagedError: it is something else.
        """

        def descriptor(part: SavedState, name: str) -> int:
            return descriptors(part.integer(name, _LARGEST_DESCRIPTOR))

        return cls(
            name=saved.text("name", _LONGEST_TEXT),
            identity=saved.text("identity", _LONGEST_TEXT),
            cpus=saved.integer("cpus", _MOST_CPUS, 1),
            memory=saved.integer("memory", _MOST_BYTES, 1),
            boot=_boot(saved.section("boot"), descriptor),
            saved=None if saved.is_none("saved") else _saved(saved.section("saved"), descriptor),
            qmp=descriptor(saved, "qmp"),
            console=descriptor(saved, "console"),
            console_log=descriptor(saved, "console_log"),
            agents=tuple(
                descriptors(each) for each in saved.integers("agents", _LARGEST_DESCRIPTOR)
            ),
            ending=descriptor(saved, "ending"),
            disks=disks_from_json(saved, descriptors),
            nics=tuple(nic_from_json(part, descriptors) for part in saved.sections("nics", None)),
            vsock=None if saved.is_none("vsock") else _vsock(saved.section("vsock"), descriptor),
            balloon=(
                None if saved.is_none("balloon") else saved.integer("balloon", _MOST_BYTES, 1)
            ),
            backend_nics=tuple(
                BackendNicConfig(_mac(part), _backend(part, descriptors))
                for part in saved.sections("backend_nics", None)
            ),
            shares=tuple(
                ShareConfig(part.text("tag", 64), _backend(part, descriptors))
                for part in saved.sections("shares", None)
            ),
            engine_log=(None if saved.is_none("engine_log") else descriptor(saved, "engine_log")),
            registration=(
                None if saved.is_none("registration") else descriptor(saved, "registration")
            ),
            emulated=saved.flag("emulated"),
        )


def disks_from_json(saved: SavedState, descriptors: Descriptors) -> tuple[DiskConfig, ...]:
    """The disks of a configuration, or of what is said when its disks are changed.

    Raises:
        DamagedError: it is something else.
    """
    return tuple(disk_from_json(part, descriptors) for part in saved.sections("disks", None))


def disk_from_json(saved: SavedState, descriptors: Descriptors) -> DiskConfig:
    """One disk of them.

    Raises:
        DamagedError: it is something else.
    """
    files = tuple(
        FileConfig(
            descriptors(file.integer("descriptor", _LARGEST_DESCRIPTOR)),
            file.text("format", 16),
        )
        for file in saved.sections("files", None)
    )
    return DiskConfig(
        files,
        saved.text("serial", 64),
        saved.flag("read_only"),
        saved.optional_integer("slot", layout.HOTPLUG_SLOTS - 1),
        None if saved.is_none("backend") else _backend(saved, descriptors),
    )


def nic_from_json(saved: SavedState, descriptors: Descriptors) -> NicConfig:
    """One network card of them.

    Raises:
        DamagedError: it is something else.
    """
    kind = saved.text("kind", 16)
    if kind not in list(LinkKind):
        raise DamagedError(f"a network card on {kind!r} cannot be")
    vhost, address, leash = (
        None if number is None else descriptors(number)
        for number in (
            saved.optional_integer(name, _LARGEST_DESCRIPTOR)
            for name in ("vhost", "address", "leash")
        )
    )
    return NicConfig(
        mac=_mac(saved),
        link=descriptors(saved.integer("link", _LARGEST_DESCRIPTOR)),
        kind=LinkKind(kind),
        mtu=saved.optional_integer("mtu", 0xFFFF),
        vhost=vhost,
        slot=saved.optional_integer("slot", layout.HOTPLUG_SLOTS - 1),
        address=address,
        leash=leash,
    )


def _mac(saved: SavedState) -> str:
    mac = saved.text("mac", 17)
    if not _MAC.fullmatch(mac):
        raise DamagedError(f"{mac!r} is not the address of a network card")
    return mac


def _vsock(saved: SavedState, descriptor: Callable[[SavedState, str], int]) -> VsockConfig:
    return VsockConfig(descriptor(saved, "listener"), descriptor(saved, "directory"))


def _boot(saved: SavedState, descriptor: Callable[[SavedState, str], int]) -> BootConfig:
    return BootConfig(
        kernel=descriptor(saved, "kernel"),
        initrd=None if saved.is_none("initrd") else descriptor(saved, "initrd"),
        command_line=saved.text("command_line", _LONGEST_TEXT),
    )


def _saved(saved: SavedState, descriptor: Callable[[SavedState, str], int]) -> SavedConfig:
    return SavedConfig(descriptor(saved, "state"), descriptor(saved, "memory"))


def _backend(part: SavedState, descriptors: Descriptors) -> BackendConfig:
    backend = part.section("backend")
    address, leash = (
        backend.optional_integer(name, _LARGEST_DESCRIPTOR) for name in ("address", "leash")
    )
    return BackendConfig(
        link=descriptors(backend.integer("link", _LARGEST_DESCRIPTOR)),
        address=None if address is None else descriptors(address),
        leash=None if leash is None else descriptors(leash),
    )
