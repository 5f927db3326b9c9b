"""Cards that the host's kernel serves (vhost-net), at a host that has it, with real guests.

One boot of a host at speed (tests/e2e/host_at_speed.py) runs all the steps, in the order in which
they stand here; each test looks at what one or two of them said. A guest's file arrives whole while
its machine is saved, forked and paused.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.e2e.host_at_speed import GUEST, Report, Shape, report_from

_LIMIT = 1200
"""Seconds for the host and all its steps, which take three minutes where little else runs."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(_LIMIT + 1800)]

_SIZE = 32 << 20
"""Bytes of the file that a machine serves, so that what happens meanwhile happens in its middle."""

_SHAPE = Shape(packages="dnsmasq-base,netbase,nftables")

_WORDS = f"""
run() {{ cerne run -d --name $1 --engine native --memory 128M --timeout 600s $2 {GUEST}; }}
serves() {{
    inside $1 "mkdir -p /w; test -e /w/f || head -c {_SIZE} /dev/urandom >/w/f; httpd -p 80 -h /w"
    inside $1 sha256sum /w/f | cut -d' ' -f1
}}
fetched() {{ inside $1 "wget -q -O - http://$2/f | sha256sum" | cut -d' ' -f1; }}
address() {{ cerne inspect --json $1 | python3 -c "
import json, sys
print(json.load(sys.stdin)['addresses'][0]['ipv4'])"; }}
threads() {{ ps -e -o comm | grep -c '^vhost-' || true; }}
"""

_STEPS = {
    "there-is-none": "test ! -e /dev/vhost-net; modprobe vhost_net; test -c /dev/vhost-net",
    "start": """
eventually cerne network create lan --uplink none
run m '--network lan'
run n '--network lan'
threads
""",
    "traffic": """
serves m >/tmp/sum
cat /tmp/sum
fetched n m
serves n
fetched m n
""",
    "snapshot": """
fetched n m >/tmp/fetched &
sleep 1
cerne snapshot create m s1
wait $!
cat /tmp/sum /tmp/fetched
threads
""",
    "fork": """
fetched n m >/tmp/fetched &
sleep 1
cerne fork m
wait $!
cat /tmp/sum /tmp/fetched
threads
eventually inside n ping -c 1 -W 5 m-1
fetched n m-1
fetched m-1 m
""",
    "restore": """
cerne snapshot restore s1
eventually inside n ping -c 1 -W 5 m
fetched n m
threads
""",
    "pause": """
fetched n m >/tmp/fetched &
sleep 1
cerne pause m
sleep 2
cerne resume m
wait $!
cat /tmp/sum /tmp/fetched
""",
    "attach": """
ip tuntap add dev t0 mode tap
ip address add 10.99.0.1/24 dev t0
ip link set t0 up
cerne nic attach m --network tap:t0 >/tmp/nic
eventually inside m test -e /sys/class/net/eth1
inside m 'ip address add 10.99.0.2/24 dev eth1; ip link set eth1 up'
eventually busybox ping -c 1 -W 5 10.99.0.2
python3 - <<END
import hashlib, urllib.request
data = urllib.request.urlopen("http://10.99.0.2/f", timeout=300).read()
print(hashlib.sha256(data).hexdigest())
END
threads
""",
    "detach": """
cerne nic detach --timeout 60s m $(cat /tmp/nic)
inside m ls /sys/class/net
threads
fetched n m
""",
    "link-is-lost": """
cerne nic attach m --network tap:t0 >/tmp/nic
eventually inside m test -e /sys/class/net/eth1
ip link delete t0
inside m hostname
cerne nic detach --timeout 60s m $(cat /tmp/nic)
""",
    "engine-logs": "cat /cerne/machines/*/engine.log",
}


@pytest.fixture(scope="module")
def report(qemu: Path, own_kernel: None) -> Report:
    steps = {name: _WORDS + script for name, script in _STEPS.items()}
    return report_from(steps, qemu=qemu, timeout=_LIMIT, shape=_SHAPE)


def _fetched(report: Report, step: str) -> list[str]:
    """The sums of all files that a step fetched or served, each a line."""
    return [line for line in report.said(step).splitlines() if len(line) == 64]


def _threads(report: Report, step: str) -> int:
    """The threads of the kernel that served cards at the end of a step, one each."""
    return int([line for line in report.said(step).splitlines() if line.isdigit()][-1])


def test_the_kernel_serves_the_cards_of_networks(report: Report) -> None:
    report.said("there-is-none")
    assert _threads(report, "start") == 2
    assert "vhost-net is not used" not in report.said("engine-logs")


def test_what_one_machine_serves_arrives_whole_at_another(report: Report) -> None:
    sent, received, sent_back, received_back = _fetched(report, "traffic")
    assert (received, received_back) == (sent, sent_back)
    assert sent != sent_back


@pytest.mark.parametrize(("step", "threads"), [("snapshot", 2), ("fork", 3)])
def test_a_file_arrives_whole_while_its_machine_is_copied(
    report: Report, step: str, threads: int
) -> None:
    sums = _fetched(report, step)
    assert sums == [sums[0]] * len(sums)
    assert sums[0] == _fetched(report, "traffic")[0]
    assert _threads(report, step) == threads


def test_a_fork_has_the_file_and_fetches_it_too(report: Report) -> None:
    assert len(_fetched(report, "fork")) == 4


def test_a_restored_machine_serves_the_file(report: Report) -> None:
    assert _fetched(report, "restore") == _fetched(report, "traffic")[:1]
    assert _threads(report, "restore") == 3


def test_a_file_arrives_whole_over_a_pause(report: Report) -> None:
    assert _fetched(report, "pause") == _fetched(report, "traffic")[:1] * 2


def test_a_card_on_a_tap_comes_and_goes(report: Report) -> None:
    assert _fetched(report, "attach") == _fetched(report, "traffic")[:1]
    assert _threads(report, "attach") == 4
    said = report.said("detach").splitlines()
    assert {"eth0", "lo"} == set(said) & {"eth0", "eth1", "lo"}
    assert _threads(report, "detach") == 3
    assert _fetched(report, "detach") == _fetched(report, "traffic")[:1]


def test_a_machine_outlives_the_end_of_a_tap(report: Report) -> None:
    assert "m\n" in report.said("link-is-lost")
    assert "has lost its link" in report.said("engine-logs")
