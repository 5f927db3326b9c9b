"""Gives a guest the addresses of its cards on networks with names, by its agent.

A guest that boots has the IPv4 address of its first card by the kernel's ``ip=`` parameter. All
others are set here, also those of a guest that continues from memory, which has the addresses of
another machine: there the link is set down and up, so that a client of DHCP in the guest asks
again. It gets the same addresses.
"""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import TYPE_CHECKING

from cerne.errors import GuestError
from cerne.manager.machines.context import MachineContext
from cerne.network.mac import mac_address

if TYPE_CHECKING:
    from cerne.guest import GuestAgent
    from cerne.manager.store import CardRow, NetworkRow
    from cerne.spec.nic import Nic

_NOT_SEEN = 3
_CONFIGURE = """
set -e
old=$1 new=$2 ipv4=$3 ipv6=$4 gateway4=$5 gateway6=$6 former=$7 card=
tries=0
while [ -z "$card" ]; do
  for path in /sys/class/net/*; do
    read -r found < "$path/address" 2>/dev/null || continue
    if [ "$found" = "$old" ] || [ "$found" = "$new" ]; then card=${path##*/}; fi
  done
  [ -n "$card" ] && break
  tries=$((tries + 1))
  [ "$tries" -lt 20 ] || exit 3
  sleep 0.2
done
if [ -n "$former" ]; then
  ip link set dev "$card" down
  ip link set dev "$card" address "$new"
  ip address flush dev "$card"
fi
ip link set dev "$card" up
[ -z "$ipv4" ] || ip address show dev "$card" | grep -q " $ipv4 " ||
  ip address add "$ipv4" dev "$card"
[ -z "$ipv6" ] || ip -6 address add "$ipv6" dev "$card" nodad 2>/dev/null ||
  ip -6 address add "$ipv6" dev "$card" 2>/dev/null || true
[ -n "$gateway4$gateway6" ] || exit 0
if [ -n "$gateway4" ]; then
  ip route replace default via "$gateway4" dev "$card"
  if [ "$(readlink /etc/resolv.conf)" = /proc/net/pnp ] || [ ! -L /etc/resolv.conf ]; then
    rm -f /etc/resolv.conf
    echo "nameserver $gateway4" > /etc/resolv.conf
  fi
fi
[ -z "$gateway6" ] || ip -6 route replace default via "$gateway6" dev "$card" 2>/dev/null || true
"""


def configure_cards(context: MachineContext, agent: GuestAgent, *, restored: bool) -> None:
    """Give a guest the addresses of its cards on networks with names.

    One that is `restored` has those of another machine.

    Raises:
        GuestError: setting them failed in the guest.
    """
    if not context.store.cards_of(context.id):
        return
    for nic in context.spec.nics:
        if nic.is_named:
            configure_card(context, agent, nic, restored=restored)


def configure_card(
    context: MachineContext, agent: GuestAgent, nic: Nic, *, restored: bool = False
) -> None:
    """Give a guest the addresses of one of its cards; it may see the card in a moment only.

    Raises:
        GuestError: setting them failed in the guest.
    """
    card = context.store.cards_of(context.id)[nic.number]
    network = context.store.network(card.network)
    ipv4 = f"{card.ipv4}/{_prefix4(network)}" if card.ipv4 else ""
    ipv6 = f"{card.ipv6}/64" if card.ipv6 else ""
    # The first card can be another one than 0, which goes while the machine is stopped.
    first = nic.number == context.spec.nics[0].number
    gateways = (str(network.gateway4 or ""), str(network.gateway6 or "")) if first else ("", "")
    argv = ["sh", "-c", _CONFIGURE, "sh", _former_mac(context, card), card.mac, ipv4, ipv6]
    done = agent.run([*argv, *gateways, "former" if restored else ""])
    if done.status == 0:
        return
    said = done.stderr.decode(errors="replace").strip()
    why = "it does not see the card" if done.status == _NOT_SEEN else said
    raise GuestError(
        f"setting the addresses of card {nic.number} in {context.last.name} failed: {why}",
        hint=f"set them in the guest: cerne exec {context.last.name} -- ip address add {ipv4} dev"
        " INTERFACE",
        machine=context.last.name,
    )


def _prefix4(network: NetworkRow) -> int:
    return IPv4Network(network.ipv4 or "0.0.0.0/32").prefixlen


def _former_mac(context: MachineContext, card: CardRow) -> str:
    """The hardware address that the card has in the memory from which the guest continues."""
    parent = context.last.parent
    if not parent:
        return card.mac
    of_parent = context.store.cards_of(parent).get(card.number)
    return of_parent.mac if of_parent is not None else mac_address(parent, card.number)
