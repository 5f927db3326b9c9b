"""Taps of a network namespace, as machines are given them."""

from __future__ import annotations

import os
import sys
from functools import partial

import pytest
from tests.taps import TAP, Namespace

from cerne.errors import ConflictError, HostError, InputError
from cerne.network.tap import mtu_of, open_tap, require_tap


def test_a_tap_has_one_machine_and_stays(namespace: Namespace) -> None:
    first = namespace.open_tap()
    with pytest.raises(ConflictError, match="another machine has the tap"):
        namespace.open_tap()
    assert not os.get_inheritable(first)
    os.close(first)
    namespace.within(lambda: require_tap(TAP))
    assert TAP in namespace.ip("link", "show")


def test_what_cannot_be_had_is_refused_with_what_mends_it(namespace: Namespace) -> None:
    with pytest.raises(HostError, match="there is no tap") as missing:
        namespace.within(lambda: open_tap("other"))
    assert "sudo ip tuntap add dev other mode tap user $USER" in missing.value.hint
    assert "other" not in namespace.ip("link", "show")
    namespace.ip("tuntap", "add", "dev", "tun0", "mode", "tun")
    namespace.ip("tuntap", "add", "dev", "many", "mode", "tap", "multi_queue")
    for name in ("tun0", "many", "lo"):
        with pytest.raises(InputError, match="is not a tap"):
            namespace.within(partial(open_tap, name))


_OPEN = """
from cerne.errors import HostError
from cerne.network.tap import open_tap
try:
    open_tap("tap1")
    print("opened")
except HostError as error:
    print(error.message, error.hint)
"""


@pytest.mark.parametrize(
    ("owner", "said"),
    [("root", "opened"), ("nobody", "belongs to another user sudo ip tuntap del dev")],
)
def test_without_privileges_a_tap_is_its_owners(
    namespace: Namespace, owner: str, said: str
) -> None:
    namespace.ip("tuntap", "add", "dev", "tap1", "mode", "tap", "user", owner)
    without = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
    assert said in namespace.run(*without, sys.executable, "-c", _OPEN)


def test_the_mtu_is_the_interfaces(namespace: Namespace) -> None:
    namespace.ip("link", "set", "dev", TAP, "mtu", "9000")
    assert namespace.within(lambda: mtu_of(TAP)) == 9000
    assert mtu_of("no-such") is None
