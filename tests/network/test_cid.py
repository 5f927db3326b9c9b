"""CIDs of machines."""

from __future__ import annotations

from cerne.network.cid import guest_cid


def test_each_machine_has_a_cid_of_its_own_that_stays() -> None:
    cids = [guest_cid(f"{number:012x}") for number in range(1000)]
    assert len(set(cids)) == 1000
    assert all(3 <= cid < 1 << 32 for cid in cids)
    assert guest_cid("0123456789ab") == guest_cid("0123456789ab")
