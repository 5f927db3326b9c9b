"""What the doctor says about networks."""

from __future__ import annotations

import pytest

from cerne.network import finding
from cerne.network.preflight import Lack


def test_what_is_missing_is_named_with_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    nft = Lack("nft is not installed", "sudo apt-get install nftables")
    monkeypatch.setattr(finding, "lacks", lambda uplink: (nft,))
    found = finding.network_finding()
    assert (found.value, found.good, found.advice) == (nft.message, False, nft.hint)


@pytest.mark.parametrize(("user", "more"), [(0, ", nat, bridge; the chain drops"), (1000, "")])
def test_the_uplinks_that_work_here_are_named(
    monkeypatch: pytest.MonkeyPatch, user: int, more: str
) -> None:
    monkeypatch.setattr(finding, "lacks", lambda uplink: ())
    monkeypatch.setattr(finding, "forward_notes", lambda: ["the chain drops"])
    monkeypatch.setattr("os.geteuid", lambda: user)
    found = finding.network_finding()
    assert (found.value, found.good) == (f"with the uplinks user, none{more}", True)
