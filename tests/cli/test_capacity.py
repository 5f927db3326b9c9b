"""``cerne capacity``: who has what was promised, and whose promises are counted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cerne.cli.capacity import capacity
from cerne.client import Capacity
from cerne.host.ledger import Published
from cerne.host.placement import topology
from cerne.manager.capacity import Account
from cerne.manager.store.promises import Promise, Resource
from cerne.units import GIB

_FOUND = Capacity(
    accounts=(Account(Resource.MEMORY, 24 * GIB, GIB, 2 * GIB, 3 * GIB, 1.0),),
    promises=tuple(Promise(f"m{number}", Resource.MEMORY, GIB) for number in range(7)),
    elsewhere=(
        Published("db", 0, GIB, None, "/srv/ci"),
        Published("web", 0, GIB, None, "/srv/ci"),
        Published("x", 0, GIB, None, "/h", 54321),
    ),
    alone="",
    hugepages=(),
    topology=topology(),
)


def _printed(
    found: Capacity, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    class Host:
        def capacity(self) -> Capacity:
            return found

    monkeypatch.setattr("cerne.client.connect", Host)
    capacity()
    return capsys.readouterr().out.splitlines()


def test_holders_and_other_homes_are_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = _printed(_FOUND, capsys, monkeypatch)
    assert lines[1].split() == ["memory", "24G", "1G", "1", "2G", "3G", "18G"]
    assert lines[-2] == "Memory is promised to m0 1G, m1 1G, m2 1G, m3 1G, m4 1G, 2 others."
    assert lines[-1] == (
        "OTHERS is what other homes have promised; memory: /srv/ci 2G, user 54321 1G."
    )


def test_a_home_that_counts_alone_says_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = replace(_FOUND, elsewhere=(), promises=(), alone="root has not used Cerne")
    assert _printed(alone, capsys, monkeypatch)[-1] == (
        "It counts the machines of this home alone, and other homes do not count these:"
        " root has not used Cerne."
    )
    assert _printed(replace(alone, alone=""), capsys, monkeypatch)[-1] == (
        "No machine of another home runs."
    )
