"""The configuration of a VMM process: JSON, in which every file is a descriptor.

The process inherits the descriptors, or receives them when a machine forks, so that it opens no
file after it has dropped its privileges.
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
_LARGEST_ID = (1 << 32) - 2
_MAC = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}", re.IGNORECASE)
"""An address of one card: the lowest bit of its first byte is zero."""
_LONGEST_TEXT = 65536
_MOST_CPUS = 1 << 12
_MOST_BYTES = 1 << 52

BACKEND_SOCKET = "link"
"""The name of a backend's listening socket, in a directory that holds nothing else."""

Descriptors = Callable[[int], int]
"""Maps a number in the configuration to a descriptor."""


class BootConfig(NamedTuple):
    """A kernel to boot."""

    kernel: int
    initrd: int | None
    command_line: str


class SavedConfig(NamedTuple):
    """A saved machine, as `cerne.vmm.snapshot` writes it."""

    state: int
    memory: int


class FileConfig(NamedTuple):
    """One file of a disk."""

    descriptor: int
    format: str


class BackendConfig(NamedTuple):
    """A process that serves a device by vhost-user."""

    link: int
    """A Unix socket that is connected to the process."""
    address: int | None = None
    """The directory of its listening socket (O_PATH), to connect again after its restart."""
    leash: int | None = None
    """A socket to its supervisor: written at an orderly end, and closed at every end."""


class DiskConfig(NamedTuple):
    """One disk: its file and the backing files under it, the top first; or its backend."""

    files: tuple[FileConfig, ...]
    serial: str = ""
    read_only: bool = False
    slot: int | None = None
    """The slot of a removable disk, from 0 on; None for a permanent one."""
    backend: BackendConfig | None = None


class ShareConfig(NamedTuple):
    """A directory of the host that a backend serves."""

    tag: str
    backend: BackendConfig


class LinkKind(StrEnum):
    """The kind of a network card's descriptor."""

    STREAM = "stream"
    """A stream socket to what stands before passt."""
    TAP = "tap"
    """A tap, with virtio_net_hdr of 12 bytes before its frames."""


class NicConfig(NamedTuple):
    """One network card, and the host's end of its link."""

    mac: str
    link: int
    kind: LinkKind = LinkKind.STREAM
    mtu: int | None = None
    """The largest packet of its network, if the guest needs it."""
    vhost: int | None = None
    """An open /dev/vhost-net, with which the kernel moves a tap's frames; else Python does."""
    slot: int | None = None
    """The slot, as of a disk."""

    @property
    def descriptors(self) -> set[int]:
        """All descriptors in it."""
        return {self.link} if self.vhost is None else {self.link, self.vhost}


class VsockConfig(NamedTuple):
    """The sockets between a guest and its host (`cerne.vmm.vsock`)."""

    listener: int
    directory: int
    """The directory in which names are looked up."""


class BackendNicConfig(NamedTuple):
    """One network card that a backend serves."""

    mac: str
    backend: BackendConfig


class VmmConfig(NamedTuple):
    """One machine, with every file that its process uses."""

    name: str
    identity: str
    """The text of the process's command line, for people."""
    cpus: int
    memory: int
    """Bytes."""
    boot: BootConfig
    """The kernel that it boots; a restored machine needs it for a reboot."""
    qmp: int
    """A listening Unix socket, like those of the console and the agent."""
    console: int
    console_log: int
    agents: tuple[int, ...]
    ending: int
    """The file to which the process writes how the machine ended."""
    saved: SavedConfig | None = None
    """The saved machine, if it does not boot; a forked child has its parent's memory."""
    disks: tuple[DiskConfig, ...] = ()
    nics: tuple[NicConfig, ...] = ()
    vsock: VsockConfig | None = None
    balloon: int | None = None
    """Bytes of memory that the guest may use; None for all, or for the saved value."""
    headroom: int = 0
    """Bytes that can be plugged in addition while it runs; a restored machine has its own."""
    hugepages: bool = False
    """Whether its memory is in hugepages, so that it is neither forked nor saved."""
    merge: bool = False
    """Whether the host may merge pages of its memory with others'."""
    backend_nics: tuple[BackendNicConfig, ...] = ()
    shares: tuple[ShareConfig, ...] = ()
    engine_log: int | None = None
    """A forked child's standard output and error, in place of its parent's."""
    registration: int | None = None
    """The file to which a forked child registers itself first (`cerne.vmm.registration`)."""
    owner: int = 0
    """The user whose commands its control socket takes, with those of root."""
    user: int | None = None
    """The user id that only this machine's processes have; a forked child has its parent's."""
    lease: int | None = None
    """The open file that keeps the user id from other machines (`cerne.host.user_ids`)."""
    doors: tuple[int, ...] = ()
    """The files by which it then enters the machine's control groups."""
    max_cpus: int = 0
    """The vCPUs for which its guest has room, if it can get more while it runs."""
    strict: bool = False
    """Whether it shares no core's threads with other processes (core scheduling)."""
    emulated: bool = False
    """Whether this host's kernel emulates guests' kernel code (`cerne.host.probe`)."""

    @property
    def backends(self) -> tuple[BackendConfig, ...]:
        """All processes that serve its devices; they share its memory."""
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
        optional = (self.engine_log, self.lease)
        numbers.update(each for each in optional if each is not None)
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
            own = (backend.link, backend.address, backend.leash)
            numbers.update(each for each in own if each is not None)
        return numbers

    def to_json(self) -> PlainState:
        """The configuration as JSON."""
        return plain(self)

    def write(self, path: Path) -> None:
        """Write it to a file for a process."""
        path.write_text(json.dumps(self.to_json(), indent=1))

    @classmethod
    def read(cls, path: Path | str) -> VmmConfig:
        """Read what `write` wrote.

        Raises:
            DamagedError: it is not valid.
        """
        try:
            with os.fdopen(os.open(path, os.O_RDONLY), "rb") as file:
                values = json.load(file)
        except (OSError, ValueError, RecursionError) as error:
            raise DamagedError(f"{path} is not a configuration of a machine: {error}") from error
        if not isinstance(values, dict):
            raise DamagedError(f"{path} is not a configuration of a machine")
        return cls.from_saved(SavedState("a machine's configuration", values), int)

    @classmethod
    def from_saved(cls, saved: SavedState, descriptors: Descriptors) -> VmmConfig:
        """Read the result of `to_json`.

        Raises:
            DamagedError: it is not valid.
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
            owner=saved.integer("owner", _LARGEST_ID),
            disks=disks_from_json(saved, descriptors),
            nics=tuple(nic_from_json(part, descriptors) for part in saved.sections("nics", None)),
            vsock=None if saved.is_none("vsock") else _vsock(saved.section("vsock"), descriptor),
            balloon=(
                None if saved.is_none("balloon") else saved.integer("balloon", _MOST_BYTES, 1)
            ),
            headroom=saved.integer("headroom", _MOST_BYTES) if "headroom" in saved else 0,
            hugepages="hugepages" in saved and saved.flag("hugepages"),
            merge="merge" in saved and saved.flag("merge"),
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
            user=saved.optional_integer("user", _LARGEST_ID),
            lease=None if saved.is_none("lease") else descriptor(saved, "lease"),
            doors=tuple(descriptors(each) for each in saved.integers("doors", _LARGEST_DESCRIPTOR)),
            max_cpus=saved.integer("max_cpus", _MOST_CPUS),
            strict=saved.flag("strict"),
            emulated=saved.flag("emulated"),
        )


def disks_from_json(saved: SavedState, descriptors: Descriptors) -> tuple[DiskConfig, ...]:
    """The disks of a configuration, or of a change of its disks.

    Raises:
        DamagedError: it is not valid.
    """
    return tuple(disk_from_json(part, descriptors) for part in saved.sections("disks", None))


def disk_from_json(saved: SavedState, descriptors: Descriptors) -> DiskConfig:
    """One disk of a configuration.

    Raises:
        DamagedError: it is not valid.
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
    """One network card of a configuration.

    Raises:
        DamagedError: it is not valid.
    """
    kind = saved.text("kind", 16)
    if kind not in list(LinkKind):
        raise DamagedError(f"a network card has the link {kind!r}, which is unknown")
    vhost = saved.optional_integer("vhost", _LARGEST_DESCRIPTOR)
    return NicConfig(
        mac=_mac(saved),
        link=descriptors(saved.integer("link", _LARGEST_DESCRIPTOR)),
        kind=LinkKind(kind),
        mtu=saved.optional_integer("mtu", 0xFFFF),
        vhost=None if vhost is None else descriptors(vhost),
        slot=saved.optional_integer("slot", layout.HOTPLUG_SLOTS - 1),
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
