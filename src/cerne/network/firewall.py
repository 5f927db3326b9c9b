"""Whether this host's firewall drops what networks with the uplink ``nat`` forward.

A packet passes only if no base chain at the hook ``forward`` drops it, so that no rule of ours lets
it pass a chain of others whose policy is to drop, such as Docker's. We change no rule of others:
the user is told which rule lets networks pass.
"""

from __future__ import annotations

import json

from cerne.network.holder import nft

PREFIX = "cerne-"
"""The beginning of the names of networks' interfaces on the host."""
_DOCKER = "DOCKER-USER"
"""The chain that Docker leaves to users: it comes before Docker's own rules."""
_TOOLS = {"ip": "iptables", "ip6": "ip6tables"}


def forward_notes() -> list[str]:
    """What drops packets of networks with the uplink ``nat``, as sentences with what helps."""
    chains = nft.chains()
    notes = []
    for chain in chains:
        family, table, name = (str(chain[key]) for key in ("family", "table", "name"))
        drops = chain.get("hook") == "forward" and chain.get("policy") == "drop"
        if not drops or family not in ("ip", "ip6", "inet"):
            continue
        docker = any(
            (each["family"], each["table"], each["name"]) == (family, table, _DOCKER)
            for each in chains
        )
        if not _lets_pass(family, table, [name, _DOCKER] if docker else [name]):
            notes.append(
                f"the chain {family} {table} {name} of this host's firewall drops what it does not"
                f" know, and so the packets of networks with the uplink nat:"
                f" {_advice(family, table, name, docker)}; or take --uplink user"
            )
    return notes


def _lets_pass(family: str, table: str, chains: list[str]) -> bool:
    """Whether a rule of these chains names the interfaces of networks."""
    found = [rule for chain in chains for rule in nft.rules(family, table, chain)]
    return any(f'"{PREFIX}' in json.dumps(rule) for rule in found)


def _advice(family: str, table: str, chain: str, docker: bool) -> str:
    if table == "filter" and chain == "FORWARD" and family in _TOOLS:
        insert = f"sudo {_TOOLS[family]} -I {_DOCKER if docker else chain}"
        back = "-m conntrack --ctstate RELATED,ESTABLISHED"
        return f"{insert} -i {PREFIX}+ -j ACCEPT; {insert} -o {PREFIX}+ {back} -j ACCEPT"
    insert = f"sudo nft insert rule {family} {table} {chain}"
    return (
        f"{insert} iifname '\"{PREFIX}*\"' accept;"
        f" {insert} oifname '\"{PREFIX}*\"' ct state established,related accept"
    )
