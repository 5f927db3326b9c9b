"""Hardware addresses."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from cerne.network.mac import mac_address


@given(st.text(), st.integers(0, 31))
def test_an_address_is_unicast_and_locally_administered(machine_id: str, index: int) -> None:
    address = mac_address(machine_id, index)
    assert re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", address)
    assert int(address[:2], 16) & 0b11 == 0b10


def test_each_card_keeps_an_address_of_its_own() -> None:
    cards = [(f"machine{number}", index) for number in range(100) for index in range(3)]
    addresses = [mac_address(*card) for card in cards]
    assert len(set(addresses)) == len(cards)
    assert addresses == [mac_address(*card) for card in cards]
