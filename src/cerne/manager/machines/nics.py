"""Changing a network card of a machine: its published ports, what it may reach, its rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cerne import faults
from cerne.errors import ConflictError, InputError, NotFoundError, StateError
from cerne.manager.machines.cards import set_cards
from cerne.manager.machines.context import MachineContext
from cerne.manager.machines.operation import operation
from cerne.spec.network import NetworkKind
from cerne.spec.ports import Protocols, names_port, parse_publishes

if TYPE_CHECKING:
    from cerne.spec.nic import Nic
    from cerne.spec.ports import PublishedPort

    Ports = tuple[PublishedPort, ...]


def change_nic(context: MachineContext, number: int, fields: Mapping[str, object]) -> Nic:
    """Change a card of a machine (see `Machine.change_nic`)."""
    if not isinstance(number, int):
        raise InputError(
            f"{number!r} is not the number of a card",
            hint=f"take the number of the card on a network: machine.card_on({number!r})",
        )
    with operation(context, "change"):
        return _changed(context, number, fields)


def publish(context: MachineContext, texts: Sequence[str]) -> Ports:
    """Publish more ports, or ranges of them, all or none (see `Machine.publish`)."""
    for text in texts:
        if not isinstance(text, str):
            raise InputError(f"{text!r} is not a text", hint="write one port as '8080:80'")
    new = [port for text in texts for port in parse_publishes(text)]
    with operation(context, "publish"):
        nic = _publishing_card(context)
        for port in new:
            _require_unpublished(context, port)
        _changed(context, nic.number, {"ports": (*nic.ports, *new)})
        return context.ports


def unpublish(context: MachineContext, texts: Sequence[str]) -> Ports:
    """Publish ports no longer, all or none of them (see `Machine.unpublish`)."""
    with operation(context, "publish"):
        published = context.published
        for text in texts:
            if not any(names_port(text, port) for port in context.ports):
                raise NotFoundError(
                    f"{context.last.name} does not publish port {text}",
                    hint=f"see: cerne publish ls {context.last.name}",
                )
        for nic in context.spec.nics:
            both = zip(nic.ports, published[nic.number], strict=True) if nic.ports else ()
            left = tuple(
                asked for asked, port in both if not any(names_port(text, port) for text in texts)
            )
            if len(left) < len(nic.ports):
                _changed(context, nic.number, {"ports": left})
        return context.ports


def _require_unpublished(context: MachineContext, port: PublishedPort) -> None:
    name = context.last.name
    published = [each for ports in context.published.values() for each in ports]
    if any(str(each) == str(port) for each in published):
        raise ConflictError(
            f"{name} publishes port {port} already",
            hint=f"take another port of this host, or remove it first: cerne publish rm {name}"
            f" {port.host_port}" + ("/udp" if port.protocol is Protocols.UDP else ""),
            machine=name,
        )


def _changed(context: MachineContext, number: int, fields: Mapping[str, object]) -> Nic:
    """Change a card, whose machine's lock is held.

    Raises:
        NotFoundError: it has no such card.
        InputError: a value is not valid.
        ConflictError: a port is in use; nothing has changed.
    """
    former = context.spec
    record = context.last
    nic = _card_of(context, number)
    if record.state.live and not nic.is_named:
        raise StateError(
            f"{record.name} is {record.state}, and its card {number} is on the network"
            f" {nic.network!r}, which changes nothing while the machine runs",
            hint=f"stop it first: cerne stop {record.name}; or use a network with a name:"
            " --network default",
            machine=record.name,
        )
    changed = [{**dict(each), **fields} if each.number == number else each for each in former.nics]
    spec = former.changed(nics=changed)
    said = ", ".join(fields)
    context.store.change_spec(record, spec.model_dump_json(), f"{said} of card {number}")
    faults.step("card noted")
    context.last = context.store.get(context.id)
    if record.state.live:
        try:
            set_cards(context, context.last, number)
        except BaseException:
            context.store.change_spec(context.last, former.model_dump_json(), f"not {said}")
            context.last = context.store.get(context.id)
            raise
        faults.step("card changed")
    return _card_of(context, number)


def _publishing_card(context: MachineContext) -> Nic:
    """The card of a machine that publishes ports: its first one that can.

    Raises:
        InputError: no card can.
    """
    for nic in context.spec.nics:
        if nic.is_named or (nic.network == NetworkKind.USER and nic.slot is None):
            return nic
    raise InputError(
        f"{context.last.name} has no card that publishes ports",
        hint=f"connect it to a network: cerne network connect default {context.last.name}",
    )


def _card_of(context: MachineContext, number: int) -> Nic:
    for nic in context.spec.nics:
        if nic.number == number:
            return nic
    raise NotFoundError(
        f"{context.last.name} has no network card {number}",
        hint=f"see: cerne nic ls {context.last.name}",
    )
