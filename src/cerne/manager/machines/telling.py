"""What a guest that runs must still be told, and telling it: who it is, the time, its mounts.

It is recorded with the process, in one transaction (`Record.untold`): a command that is killed
before its guest was told leaves that to the next command which needs the guest.
"""

from __future__ import annotations

import logging
import time
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING

from cerne import faults
from cerne.errors import GuestError, StateError
from cerne.manager.lock import held
from cerne.manager.machines.context import MachineContext
from cerne.manager.machines.plan import share_tag
from cerne.manager.machines.states import refuse_stopped
from cerne.manager.machines.watch import BootWatch
from cerne.manager.store import State

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cerne.guest import GuestAgent
    from cerne.images import Image, Progress
    from cerne.manager.store import Record
    from cerne.spec.nic import Nic

_log = logging.getLogger(__name__)

_MOUNT = (
    'while read -r _ place _; do [ "$place" = "$1" ] && exit 0; done </proc/mounts;'
    ' mkdir -p "$1" && exec mount -t "$2" -o "$3" "$4" "$1"'
)
"""Mounts once: a command may have been killed after it did."""


_LEAST_TIME = 1.0
"""Seconds for a request that comes after a wait that took nearly all the time."""

READY_TIMEOUT = 120.0
"""Seconds that a guest may take to become ready, unless a command says otherwise."""

SYSTEMD_READY_TIMEOUT = 300.0
"""The same where systemd boots: it waits up to 90 s for one device or one service."""


def ready_timeout(image: Image) -> float:
    """Seconds that a guest of this image may take to become ready, if no command says it."""
    return SYSTEMD_READY_TIMEOUT if image.has_systemd else READY_TIMEOUT


class Untold(StrEnum):
    """One thing that a guest must still be told."""

    BOOT = "boot"
    """It boots: its name is to be kept, and its directories mounted, once its agent answers."""
    IDENTITY = "identity"
    """It goes on from saved memory, or has another name: who it is now, and the time."""
    TIME = "time"
    """It was paused: the time."""


def added(untold: str, what: Untold) -> str:
    """What `Record.untold` is with one thing more."""
    return ",".join(sorted({what, *filter(None, untold.split(","))}))


def to_be_told(context: MachineContext, record: Record, saved: Path | None, *, agent: bool) -> str:
    """What a guest must be told once it runs, if it has an agent."""
    if not agent:
        return ""
    if saved is None:
        return Untold.BOOT
    return added(record.untold if saved == context.saved else "", Untold.IDENTITY)


def tell(
    context: MachineContext, timeout: float = READY_TIMEOUT, progress: Progress | None = None
) -> None:
    """Tell a guest that runs all that it must still be told, once its agent answers.

    Several commands may want to at once: one does, and the others wait for it.

    Raises:
        StateError: its machine was paused meanwhile; it is told once it runs on.
        GuestError: it does not answer in `timeout` seconds, or cannot do as it is told.
    """
    if not context.last.untold:
        return
    with held(context.telling_lock, "start", context.last.name, timeout):
        while (record := context.store.get(context.id)).untold:
            context.last = record
            if context.instance(record).record.agent:
                _say(context, record, timeout, progress)
            # Not where it was renamed or paused meanwhile: then there is more to tell.
            context.store.set_told(record)
        context.last = record


def _say(
    context: MachineContext, record: Record, timeout: float, progress: Progress | None
) -> None:
    refuse_stopped(record)
    deadline = time.monotonic() + timeout
    untold = record.untold.split(",")
    agent = context.instance(record).agent()
    watch = _watch(context, record)
    goes_on = partial(_goes_on, context, record, watch, progress)
    if Untold.BOOT in untold:
        agent.wait_ready(timeout, alive=goes_on)
        _log.debug("the agent of %s answers", record.name)
        _mount_shares(context, agent)
    if untold == [Untold.TIME]:
        agent.set_time()
        return
    from cerne.manager.machines.addresses import configure_cards
    from cerne.manager.machines.identity import renew

    restored = Untold.IDENTITY in untold
    left = max(_LEAST_TIME, deadline - time.monotonic())
    renew(context, agent, restored=restored, timeout=left)
    faults.step("renewed")
    configure_cards(context, agent, restored=restored)
    if Untold.BOOT in untold:
        complete_boot(context, context.image(), agent, deadline, goes_on)


def complete_boot(
    context: MachineContext,
    image: Image,
    agent: GuestAgent,
    deadline: float,
    goes_on: Callable[[], bool],
) -> None:
    """What is left of a boot once the agent answers: the root's size, and systemd's boot target.

    Raises:
        GuestError: it is not there at the `deadline` (`time.monotonic`), or the guest is gone.
    """
    name = context.last.name
    if image.disk is not None and (context.spec.root_size or 0) > image.disk.virtual_size:
        _grow_root(agent, name)
    if image.has_systemd:
        from cerne.manager.machines.boot import await_boot_target

        left = max(_LEAST_TIME, deadline - time.monotonic())
        await_boot_target(agent, name, left, goes_on)


def _grow_root(agent: GuestAgent, name: str) -> None:
    """Have the guest of a machine of this name use all of a root disk that is larger than its
    image's."""
    try:
        agent.grow_root()
    except GuestError as error:
        _log.warning(
            "the root disk of %s is larger than its file system, which did not grow: %s",
            *(name, error.message),
        )


def tell_of_card(context: MachineContext, nic: Nic) -> None:
    """Tell the guest of a machine that runs the addresses of a card that was just attached.

    A guest that is not ready, or has no agent, gets them by DHCP.

    Raises:
        GuestError: setting them failed in the guest.
    """
    record = context.store.get(context.id)
    if nic.is_named and record.state is State.RUNNING and record.ready and not record.untold:
        instance = context.instance(record)
        if instance.record.agent:
            from cerne.manager.machines.addresses import configure_card

            configure_card(context, instance.agent(), nic)


def _watch(context: MachineContext, record: Record) -> BootWatch:
    assert record.process is not None
    return BootWatch(record.name, record.process, context.console_log)


def _goes_on(
    context: MachineContext, record: Record, watch: BootWatch, progress: Progress | None
) -> bool:
    """Whether its process runs; raises an error if the machine was paused."""
    if context.store.get(context.id).state is State.PAUSED:
        raise StateError(
            f"{record.name} was paused before its guest was ready",
            hint=f"resume it: cerne resume {record.name}",
            machine=record.name,
        )
    if progress is not None:
        progress(f"booting {record.name}", 0, None)
    return watch.check()


def _mount_shares(context: MachineContext, agent: GuestAgent) -> None:
    if not context.spec.mounts:
        return
    share = context.engine().share_type
    for index, mount in enumerate(context.spec.mounts):
        mode = "ro" if mount.read_only else "rw"
        options = ",".join(filter(None, (share.options, mode)))
        named = (mount.target, share.file_system, options, share_tag(index))
        done = agent.run(["sh", "-c", _MOUNT, "sh", *named])
        if done.status != 0:
            said = done.stderr.decode(errors="replace").strip()
            raise GuestError(
                f"mounting {mount.source} at {mount.target} in {context.last.name} failed: {said}",
                hint=f"the guest's kernel needs {share.file_system} over virtio, which this one"
                " has: cerne kernel build",
                machine=context.last.name,
            )
