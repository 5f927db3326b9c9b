"""What every device promises of its state: saved, changed and restored, it is what it was."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import pkgutil
import random
from collections.abc import Iterator
from functools import partial
from itertools import cycle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.devices.pci_guest import Guest
from tests.devices.queue_driver import Buffer
from tests.devices.registry import PARTS, VIRTIO, Contract, Stateful

import cerne.devices
from cerne.devices.state import PlainState
from cerne.devices.vhost_user.device import VhostUserDevice
from cerne.devices.virtio.device import VirtioDevice
from cerne.devices.virtio.net.kernel import KernelNetDevice
from cerne.devices.virtio.transport import VirtioPciTransport
from cerne.errors import DamagedError, EngineError
from cerne.kvm.memory import GuestAddress, GuestMemory

_BASES = {VirtioDevice, VirtioPciTransport, VhostUserDevice}
"""Tested with each device that is behind a transport."""
_OVER_THE_KERNEL = {KernelNetDevice}
"""Tested with a tap (`test_net.py`) and with what stands for vhost-net (`test_vhost_net.py`)."""


def _found() -> Iterator[type]:
    for module in pkgutil.walk_packages(cerne.devices.__path__, "cerne.devices."):
        for _, found in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            own = found.__module__.startswith("cerne.devices.")
            if own and hasattr(found, "state") and hasattr(found, "restore"):
                yield found


def test_every_device_is_under_contract() -> None:
    assert set(_found()) == {*PARTS, *VIRTIO, *_BASES, *_OVER_THE_KERNEL}


def test_a_kind_of_device_that_names_no_state_cannot_be_saved() -> None:
    class Forgetful(VirtioDevice):
        device_type = 63

    with pytest.raises(EngineError, match="Forgetful does not define its state"):
        Forgetful().state()


# A descriptor each, and there may be thousands of devices: the last few have one of their own.
_memories = cycle([GuestMemory.shared([(GuestAddress(0), 1 << 20)]) for _ in range(8)])


class _Driven:
    """A virtio device behind its transport, with a driver."""

    def __init__(self, kind: type[VirtioDevice]) -> None:
        memory = next(_memories)
        memory.write(0, bytes(memory.size))
        self._guest = Guest(VIRTIO[kind](), memory)

    def state(self) -> PlainState:
        return self._guest.transport.state()

    def restore(self, state: PlainState) -> None:
        self._guest.transport.restore(state)

    def work(self) -> None:
        """Start it, and have it serve a queue."""
        self._guest.start()
        self._guest.queues[0].add([Buffer(0x80000, 64, write=True)])
        self._guest.kick(0)


def _work(device: Stateful) -> None:
    assert isinstance(device, _Driven)
    device.work()


CONTRACTS = {kind.__name__: contract for kind, contract in PARTS.items()} | {
    kind.__name__: Contract(partial(_Driven, kind), _work) for kind in VIRTIO
}


@pytest.fixture(params=CONTRACTS)
def contract(request: pytest.FixtureRequest) -> Contract:
    return CONTRACTS[request.param]


def _through_a_file(state: PlainState) -> PlainState:
    read: PlainState = json.loads(json.dumps(state))
    return read


def test_it_is_again_what_it_was(contract: Contract) -> None:
    device = contract.make()
    fresh = device.state()
    contract.change(device)
    changed = device.state()
    assert changed != fresh
    other = contract.make()
    for state in (changed, fresh, changed):
        other.restore(_through_a_file(state))
        assert other.state() == state


def test_it_misses_nothing_in_silence(contract: Contract) -> None:
    device = contract.make()
    contract.change(device)
    state = device.state()
    for name in state:
        with pytest.raises(DamagedError):
            contract.make().restore({key: state[key] for key in state if key != name})


_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["ff", "0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


@pytest.mark.parametrize("name", CONTRACTS)
@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1 << 32), st.lists(_PLAIN, min_size=1, max_size=3))
def test_damaged_state_is_refused_or_taken_whole(
    name: str, seed: int, values: list[object]
) -> None:
    numbers = random.Random(seed)
    contract = CONTRACTS[name]
    device = contract.make()
    contract.change(device)
    state: object = _through_a_file(device.state())
    for value in values:
        state = _altered(state, value, numbers)
    assert isinstance(state, dict)
    other = contract.make()
    with contextlib.suppress(DamagedError):
        other.restore(state)
        json.dumps(other.state())


def _altered(tree: object, value: object, numbers: random.Random) -> object:
    """The tree with one of its values, at any depth, replaced."""
    if isinstance(tree, dict) and tree:
        chosen = numbers.choice(sorted(tree))
        changed = _altered(tree[chosen], value, numbers)
        deeper = isinstance(tree[chosen], dict | list) and numbers.random() < 0.9
        return tree | {chosen: changed if deeper else value}
    if isinstance(tree, list) and tree:
        chosen_at = numbers.randrange(len(tree))
        changed = _altered(tree[chosen_at], value, numbers)
        return [changed if at == chosen_at else each for at, each in enumerate(tree)]
    return value
