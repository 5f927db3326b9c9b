"""Pools, where something else happens while they are filled."""

from __future__ import annotations

import pytest
from tests.manager.conftest import FakeEngine

from cerne.errors import NotFoundError
from cerne.manager import Manager
from cerne.manager.store import Store
from cerne.manager.store.rows import Record
from cerne.spec.machine import machine_spec


def test_one_that_is_removed_while_it_is_filled_leaves_no_machine(
    manager: Manager, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = manager.create_pool("p", machine_spec(name="p", image="blank", memory="64M"), 3)
    join_pool = Store.join_pool

    def join_second_too_late(store: Store, record: Record, name: str) -> None:
        if store.members(name):
            manager.pool(name).remove()
        join_pool(store, record, name)

    monkeypatch.setattr(Store, "join_pool", join_second_too_late)
    with pytest.raises(NotFoundError, match="the pool p, or its new machine p-"):
        pool.fill()
    assert manager.machines() == []
    assert engine.running() == 0
