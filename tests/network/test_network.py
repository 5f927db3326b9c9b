"""Networks with machines on them, each trial on a host of its own, as root and as another user.

The trials are in `tests/network/lab/trials.py`. A machine there is a namespace with its own network
stack, whose card is joined to the tap that a network gives.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.network.lab.host import UNABLE, USER
from tests.waiting import PATIENCE

from cerne.host.programs import find_program

_ROOT = 0
_QUICK = {
    _ROOT: (
        *(
            "addresses",
            "again",
            "allowed_names",
            "apart",
            "bridge",
            "clients",
            "egress",
            "firewall",
            "killed",
            "names",
        ),
        *(
            "neighbours",
            "outside_nat",
            "outside_user",
            "own_names",
            "picked",
            "published",
            "reboot",
            "repair",
            "spoofing",
            "vlan",
        ),
    ),
    USER: ("clients", "outside_user", "published", "spoofing"),
}
_SLOW = {
    _ROOT: ("crowd", "flood", "rates", "without_ipv6"),
    USER: (
        "addresses",
        "egress",
        "killed",
        "reboot",
        "repair",
        "again",
        "apart",
        "names",
        "neighbours",
        "picked",
        "rates",
    ),
}
_PROGRAMS = ("nft", "dnsmasq", "pasta", "ip", "tc", "busybox", "setpriv", "setsid")


@pytest.mark.parametrize(
    ("user", "trial"),
    [
        *(pytest.param(user, trial) for user in _QUICK for trial in _QUICK[user]),
        *(
            pytest.param(user, trial, marks=pytest.mark.slow)
            for user in _SLOW
            for trial in _SLOW[user]
        ),
    ],
)
def test_trial(user: int, trial: str, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can make a host for the trial")
    missing = [name for name in _PROGRAMS if find_program(name) is None]
    if missing:
        pytest.skip(f"not installed here: {', '.join(missing)}")
    # A user without privileges has to enter it, and its path is short enough for sockets.
    place = Path(f"/tmp/cerne-{tmp_path.parent.parent.name}-{trial}-{user}")
    place.mkdir(mode=0o755, exist_ok=True)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tests.network.lab.host", str(user), trial, str(place)],
            capture_output=True,
            text=True,
            timeout=PATIENCE * 3,
            check=False,
            cwd=Path(__file__).parents[2],
        )
    finally:
        place.rmdir()
    if done.returncode == UNABLE:
        pytest.skip(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
