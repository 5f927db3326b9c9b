"""How a machine's network is written."""

from __future__ import annotations

import pytest

from cerne.errors import InputError
from cerne.spec.network import NetworkChoice, NetworkKind, parse_network


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("user", NetworkChoice(NetworkKind.USER)),
        ("none", NetworkChoice(NetworkKind.NONE)),
        ("tap:tap0", NetworkChoice(NetworkKind.TAP, "tap0")),
        ("tap:a-b.c_d", NetworkChoice(NetworkKind.TAP, "a-b.c_d")),
        ("lan", NetworkChoice(NetworkKind.NAMED, name="lan")),
        ("default", NetworkChoice(NetworkKind.NAMED, name="default")),
    ],
)
def test_networks_that_are(text: str, choice: NetworkChoice) -> None:
    assert parse_network(text) == choice


@pytest.mark.parametrize(
    "text",
    [
        *("", "tap", "tap:", "bridge:br0", "user:x", "none:", "TAP:x", "tap:a b", "tap:a/b"),
        *("Lan", "-lan", "lan-", "l" * 33, "host", "lan:", "a b", "lan\n"),
        *("tap:a:b", "tap:tap%d", "tap:.", "tap:..", "tap:" + "x" * 16, "tap:\u00e9", "tap:a\n"),
    ],
)
def test_networks_that_are_not(text: str) -> None:
    with pytest.raises(InputError, match="is not a network"):
        parse_network(text)
