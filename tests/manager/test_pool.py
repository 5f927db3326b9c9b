"""Pools, where something else happens while they are filled."""

from __future__ import annotations

import pytest
from tests.manager.conftest import FakeEngine

from cerne.client import Host
from cerne.errors import NotFoundError
from cerne.host.process import ProcessIdentity, boot_id
from cerne.manager import Manager
from cerne.manager.store import Store
from cerne.manager.store.rows import Record
from cerne.spec.machine import machine_spec


def test_one_that_is_removed_while_it_is_filled_leaves_no_machine(
    host: Host, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = host.create_pool("p", machine_spec(name="p", image="blank", memory="64M"), 3)
    join_pool = Store.join_pool

    def join_second_too_late(store: Store, record: Record, name: str) -> None:
        if store.members(name):
            host.pool(name).remove()
        join_pool(store, record, name)

    monkeypatch.setattr(Store, "join_pool", join_second_too_late)
    with pytest.raises(NotFoundError, match="the pool p, or its new machine p-"):
        pool.fill()
    assert host.machines() == []
    assert engine.running() == 0


def test_a_machine_whose_filler_is_killed_is_removed(
    host: Host, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its start and the pool it is its filler's, which has ended."""
    pool = host.create_pool("p", machine_spec(name="p", image="blank", memory="64M"), 1)
    ended = ProcessIdentity(pid=2**22 - 1, start_time=1, boot_id=boot_id())
    with monkeypatch.context() as killed:
        killed.setattr("cerne.manager.warm.pool.this_process", lambda: ended)
        killed.setattr(Store, "join_pool", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            pool.fill()
    assert engine.running() == 1
    assert host.machines() == []
    assert engine.running() == 0
    assert pool.fill() == 1
    (member,) = host.machines()
    assert member.record.client is None


def _interrupt(_store: Store, _record: Record, _pool: str) -> None:
    raise KeyboardInterrupt


def test_a_pool_that_is_removed_leaves_no_lock(manager: Manager) -> None:
    pool = manager.create_pool("p", machine_spec(name="p", image="blank", memory="64M"), 0)
    pool.fill()
    pool.remove()
    assert not manager.home.pool_lock("p").exists()
