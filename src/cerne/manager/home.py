"""Every file and directory of Cerne on this host, named in this one module.

Data lasts and lies under ``$XDG_DATA_HOME/cerne`` (root: ``/var/lib/cerne``); sockets and locks
live as long as this boot under ``$XDG_RUNTIME_DIR/cerne`` (root: ``/run/cerne``); what can be made
anew is shared under ``$XDG_CACHE_HOME/cerne`` (root: ``/var/cache/cerne``). ``CERNE_HOME`` moves
data and runtime, ``CERNE_CACHE`` the cache.
"""

from __future__ import annotations

import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cerne.errors import HostError, InputError, StorageError
from cerne.host.cell_note import NOTE
from cerne.host.ledger import HostLedger
from cerne.host.private import require_private
from cerne.spec.limits import ROOT_SERIAL

# sun_path of unix(7), less its closing zero.
_LONGEST_SOCKET_PATH = 107
_LONGEST_SOCKET_NAME = len("/0123456789ab/console.sock.lock")


@dataclass(frozen=True, slots=True)
class Home:
    """Where this user's machines, images and sockets are."""

    data: Path
    runtime: Path
    cache: Path

    @classmethod
    def of_this_user(cls) -> Home:
        """The home that the environment names, with its directories made.

        Raises:
            InputError: the runtime directory's path leaves no room for a socket's name.
            HostError, StorageError: making a directory failed.
        """
        data, runtime = _data_and_runtime()
        home = cls(data, runtime, _cache())
        if len(str(home.machines_runtime)) + _LONGEST_SOCKET_NAME > _LONGEST_SOCKET_PATH:
            raise InputError(
                f"the path {runtime} is too long for Unix sockets",
                hint="set CERNE_HOME to a directory with a shorter path",
            )
        if runtime.parent == (shared := Path(tempfile.gettempdir())):
            for directory in (home.machines_runtime, home.locks, home.waiters):
                require_private(directory, shared)
        for directory in (
            home.data,
            home.runtime,
            home.machines,
            home.layers,
            home.snapshots,
            home.templates,
            home.machines_runtime,
            home.locks,
            home.failures,
            home.disks,
        ):
            _make(directory)
        return home

    def ledger(self) -> HostLedger:
        """Where other homes of this host see what this one promises to its machines."""
        return HostLedger(self.data, self.machines_runtime)

    @property
    def store(self) -> Path:
        """The SQLite database of machines and events."""
        return self.data / "store.sqlite"

    @property
    def images(self) -> Path:
        return self.data / "images"

    @property
    def guest_speed(self) -> Path:
        """How fast this host runs guests, as measured since its boot."""
        return self.cache / "guest-speed.json"

    @property
    def machines(self) -> Path:
        """Holds a directory of each machine: its disks and its logs."""
        return self.data / "machines"

    @property
    def layers(self) -> Path:
        """Holds the disk layers that overlays of machines and snapshots are made on."""
        return self.data / "layers"

    @property
    def snapshots(self) -> Path:
        """Holds a directory of each snapshot that has memory."""
        return self.data / "snapshots"

    @property
    def failures(self) -> Path:
        """Holds the console logs of removed machines that had failed, the newest few."""
        return self.data / "failures"

    @property
    def machines_runtime(self) -> Path:
        """Holds a directory of each running machine: its sockets."""
        return self.runtime / "m"

    def network_runtime(self, network_id: str) -> Path:
        """What a network has while it runs: its sockets, leases and logs."""
        return self.runtime / "n" / network_id

    def network_lock(self, network_id: str) -> Path:
        return self.locks / f"network-{network_id}.lock"

    @property
    def locks(self) -> Path:
        return self.runtime / "locks"

    @property
    def waiters(self) -> Path:
        """Holds what wakes those who wait for changes of the store."""
        return self.runtime / "waiters"

    def machine_directory(self, machine_id: str) -> Path:
        return self.machines / machine_id

    def machine_runtime(self, machine_id: str) -> Path:
        return self.machines_runtime / machine_id

    def machine_group(self, machine_id: str) -> Path:
        """The note about the control groups of its processes (`cerne.host.cell_note`)."""
        return self.machine_runtime(machine_id) / NOTE

    def machine_lock(self, machine_id: str) -> Path:
        return self.locks / f"{machine_id}.lock"

    def root_disk(self, machine_id: str) -> Path:
        return self.machine_directory(machine_id) / "root.qcow2"

    def disk(self, machine_id: str, serial: str) -> Path:
        """A machine's own disk of this serial."""
        if serial == ROOT_SERIAL:
            return self.root_disk(machine_id)
        return self.machine_directory(machine_id) / f"data-{serial}.qcow2"

    @property
    def disks(self) -> Path:
        """The detached disks of machines, which belong to the user and are never removed."""
        return self.data / "disks"

    def saved(self, machine_id: str) -> Path:
        """What a suspended machine goes on from."""
        return self.machine_directory(machine_id) / "saved"

    def half_saved(self, machine_id: str) -> Path:
        """What becomes `saved` once it is complete."""
        return self.machine_directory(machine_id) / "saved.new"

    def layer(self, layer_id: str) -> Path:
        return self.layers / f"{layer_id}.qcow2"

    @property
    def templates(self) -> Path:
        """Holds a directory of each template."""
        return self.data / "templates"

    def template(self, key: str) -> Path:
        return self.templates / key

    def template_lock(self, key: str) -> Path:
        return self.locks / f"template-{key}.lock"

    def pool_lock(self, name: str) -> Path:
        return self.locks / f"pool-{name}.lock"

    @property
    def pools_log(self) -> Path:
        """What is said by those who fill pools in the background."""
        return self.data / "pools.log"

    @property
    def layers_lock(self) -> Path:
        return self.locks / "layers.lock"

    def snapshot_directory(self, snapshot_id: str) -> Path:
        return self.snapshots / snapshot_id

    def failure_log(self, name: str) -> Path:
        return self.failures / f"{name}.console.log"


def _data_and_runtime() -> tuple[Path, Path]:
    moved = os.environ.get("CERNE_HOME")
    if moved:
        root = Path(moved).expanduser().absolute()
        return root, root / "run"
    if _is_root():
        return Path("/var/lib/cerne"), Path("/run/cerne")
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        return data / "cerne", Path(runtime) / "cerne"
    # Without a session manager there is no runtime directory: one of this user's alone.
    return data / "cerne", Path(tempfile.gettempdir()) / f"cerne-{os.geteuid()}"


def _cache() -> Path:
    moved = os.environ.get("CERNE_CACHE")
    if moved:
        return Path(moved).expanduser().absolute()
    if _is_root():
        return Path("/var/cache/cerne")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cerne"


def _is_root() -> bool:
    return os.geteuid() == 0


def _make(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
    except FileExistsError as error:
        raise StorageError(
            f"{directory} is a file, and not a directory",
            hint="set CERNE_HOME to a directory",
        ) from error
    except PermissionError as error:
        raise HostError(
            f"making {directory} failed: {error.strerror}",
            hint="set CERNE_HOME to a directory of your own",
        ) from error
    except OSError as error:
        raise StorageError(
            f"making {directory} failed: {error.strerror}",
            hint="free some space, or set CERNE_HOME to a directory that you may write to",
        ) from error
    if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        raise HostError(
            f"all users may write to {directory}", hint=f"forbid it: chmod o-w {directory}"
        )
    if status.st_uid != os.geteuid():
        raise HostError(
            f"{directory} belongs to another user", hint="set CERNE_HOME to a directory of your own"
        )
