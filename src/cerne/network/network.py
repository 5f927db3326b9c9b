"""Networks: each is a network namespace with a bridge, kept by one process, its holder.

The holder is a child of no command. A command finds it by its record, and speaks to it by a socket
in the network's directory (`cerne.network.control`). All processes of a network are registered
there (`cerne.host.members`) and end with it. One of them, the anchor, does nothing and has the
namespace: if the holder is killed, `repair` starts another one in the same namespace.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from cerne.errors import CerneError, EngineError, HostError, StorageError
from cerne.faults import step
from cerne.host.cell import Cell, CellPlan, made
from cerne.host.cell_note import NOTE
from cerne.host.logs import last_line
from cerne.host.members import Members
from cerne.host.programs import require_program
from cerne.network import control, stored
from cerne.network.plan import CardPlan, CardState, NetworkPlan, NetworkRecord, NetworkState
from cerne.spec.network import Uplink
from cerne.spec.resources import MemoryResources, Resources
from cerne.units import MIB

_PLAN, _LOG, _LOCK = "plan.json", "holder.log", "lock"
_HOLDER, _ANCHOR = "holder", "anchor"
_LONGEST_END = 10.0
_RESOURCES = Resources(memory=MemoryResources(limit=512 * MIB), pids=256)
"""What the processes of a network may use together, however its machines flood it."""
_LARGEST = 1 << 20


def start_network(plan: NetworkPlan) -> NetworkRecord:
    """Start a network's holder, or find the one that runs in its directory; return its record.

    If it fails, nothing is left. If the command is killed, the next call finds what was started.

    Raises:
        HostError: the host lacks what it needs, or forbids it; the hint says what helps.
        InputError, ConflictError: the subnets or the parent collide with what the host has.
    """
    members = Members(plan.directory)
    try:
        plan.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"making {plan.directory} failed: {error.strerror}") from error
    with _locked(plan.directory):
        running = members.alive(_HOLDER)
        if running and _stored_plan(plan.directory) == plan and _answers(plan.directory):
            return NetworkRecord(running[0], plan.directory)
        return _started(plan, members)


def attach_network(plan: NetworkPlan, record: NetworkRecord) -> Network:
    """The network of a record, running or not; `plan` is what `repair` makes it of again."""
    return Network(plan, record)


class Network:
    """A network that was started."""

    def __init__(self, plan: NetworkPlan, record: NetworkRecord) -> None:
        self._plan = plan
        self._record = record

    @property
    def record(self) -> NetworkRecord:
        """Its present record, which `repair` may change: store it again then."""
        return self._record

    def alive(self) -> bool:
        """Whether its holder runs."""
        return self._record.holder.alive()

    def add_card(self, card: CardPlan) -> int:
        """Make a card's tap, rules, names and ports; return the tap's descriptor.

        The tap has one queue and virtio-net headers of 12 bytes, as `cerne.network.tap.open_tap`
        gives it. It exists while the descriptor is open. A card of the same MAC whose tap is
        closed is replaced.

        Raises:
            ConflictError: a port is in use, or another card has its MAC, address or name.
            EngineError: the network does not answer, or failed.
        """
        descriptor = self._ask("add", card=_dumped(card))[1]
        if descriptor is None:
            raise EngineError(f"the network {self._plan.name} gave no tap")
        return descriptor

    def set_card(self, card: CardPlan) -> CardState:
        """Change what a card may do: ports, egress, host ports, rate, name; at once.

        Connections through ports that stay are kept. The MAC names the card.

        Raises:
            NotFoundError: there is no such card.
            ConflictError: a port is in use; nothing has changed.
        """
        return stored.card_state().validate_python(self._ask("set", card=_dumped(card))[0])

    def remove_card(self, mac: str) -> None:
        """Remove a card with its tap, ports, names and rules; or do nothing."""
        self._ask("remove", mac=mac)

    def cards(self) -> tuple[CardState, ...]:
        """Its cards."""
        return self.state().cards

    def state(self) -> NetworkState:
        """What it has, and what is wrong with it.

        A network whose holder does not run has no cards, and says so among its faults.
        """
        if not self.alive():
            return NetworkState((), {}, ("the network's process does not run",), ())
        return stored.network_state().validate_python(self._ask("state")[0])

    def repair(self, cards: Iterable[CardPlan]) -> tuple[str, ...]:
        """Make all again that is missing, of a network that runs or not; return what was done.

        Machines that run keep their cards as long as their namespace exists. Of those that lost
        it, `cards()` has `connected` false: their machines need `add_card` and the new descriptor.

        Raises:
            HostError: as `start_network`.
        """
        done: list[str] = []
        if not (self.alive() and _answers(self._plan.directory)):
            self._record = start_network(self._plan)
            done.append("started the network's process again")
        result = self._ask("repair", cards=[_dumped(card) for card in cards])[0]
        assert isinstance(result, list)
        return (*done, *map(str, result))

    def stop(self) -> None:
        """End all its processes and remove all that it has made on the host; or do nothing.

        Raises:
            HostError: a process does not end.
        """
        Members(self._plan.directory).end()
        Cell(self._plan.directory / NOTE).end()
        if self._plan.uplink in (Uplink.NAT, Uplink.BRIDGE):
            # Imported here, since most commands need no netlink.
            from cerne.network.holder.uplinks import leave_host

            leave_host(self._plan.id)
        shutil.rmtree(self._plan.directory, ignore_errors=True)

    def _ask(self, action: str, **values: object) -> tuple[object, int | None]:
        if not self.alive():
            raise HostError(
                f"the network {self._plan.name} does not run",
                hint=f"cerne network repair {self._plan.name}",
            )
        return control.ask(self._plan.directory, {"do": action, **values})


def _started(plan: NetworkPlan, members: Members) -> NetworkRecord:
    _end_all_but_anchor(members)
    fresh = not members.alive(_ANCHOR)
    try:
        (plan.directory / _PLAN).write_bytes(stored.network_plan().dump_json(plan))
        step("network planned")
        with _in_cell(plan):
            _run(plan, members)
        step("network started")
        running = members.alive(_HOLDER)
        if not running:
            raise EngineError(f"the process of the network {plan.name} ended at once")
        return NetworkRecord(running[0], plan.directory)
    except CerneError:
        if fresh:
            members.end()
            Cell(plan.directory / NOTE).end()
            shutil.rmtree(plan.directory, ignore_errors=True)
        raise


@contextlib.contextmanager
def _in_cell(plan: NetworkPlan) -> Iterator[None]:
    """Have the network's control groups, which its holder enters and all that it starts."""
    note = plan.directory / NOTE
    groups = Cell(note).groups
    if groups and all(group.is_dir() for group in groups):
        yield
        return
    with made(CellPlan(plan.id, note, _RESOURCES, required=False)):
        yield


def _run(plan: NetworkPlan, members: Members) -> None:
    """Start the holder, and wait until the network works."""
    python = [sys.executable, "-I", "-m", "cerne.network.holder", str(plan.directory)]
    log = plan.directory / _LOG
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as answers:
        try:
            with (
                members.command(_HOLDER, python, enters=True) as (command, registration),
                log.open("wb") as said,
            ):
                subprocess.run(
                    [str(require_program("setsid")), "--fork", *command],
                    stdin=registration,
                    stdout=writing,
                    stderr=said,
                    cwd="/",
                    env={"LC_ALL": "C", "PATH": os.environ.get("PATH", os.defpath)},
                    check=True,
                )
        except (OSError, subprocess.CalledProcessError) as error:
            raise HostError(f"starting the network's process failed: {error}") from error
        finally:
            os.close(writing)
        answer = answers.read(_LARGEST)
    if not answer:
        raise EngineError(
            f"the process of the network {plan.name} ended: {last_line(log) or 'it said nothing'}"
        )
    control.require_result(json.loads(answer))


def _end_all_but_anchor(members: Members) -> None:
    """End what is left of a network, and keep its namespace."""
    left = [member for member in members.all() if member.role != _ANCHOR and member.process]
    # The holder first: it would start the others again.
    left.sort(key=lambda member: member.role != _HOLDER)
    for member in left:
        if member.process is not None and member.process.send(signal.SIGKILL):
            member.process.wait(_LONGEST_END)
        member.file.unlink(missing_ok=True)


def _answers(directory: Path) -> bool:
    try:
        control.ask(directory, {"do": "state"})
    except CerneError:
        return False
    return True


def _stored_plan(directory: Path) -> NetworkPlan | None:
    try:
        return stored.network_plan().validate_json((directory / _PLAN).read_bytes())
    except (OSError, ValueError):
        return None


def _dumped(card: CardPlan) -> object:
    return stored.card_plan().dump_python(card, mode="json")


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One command at a time starts this network."""
    with (directory / _LOCK).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
