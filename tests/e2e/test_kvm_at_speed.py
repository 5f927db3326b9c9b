"""The native engine where KVM runs guests' kernels at speed: without any of the helps, with ACPI.

One boot of such a host (tests/e2e/host_at_speed.py) runs all the steps, in the order in which they
stand here; each test looks at what one or two of them said.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tests.e2e.host_at_speed import GUEST, Report, report_from

from cerne.units import MIB

_LIMIT = 1200
"""Seconds for the host and all its steps, which take three minutes where little else runs."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(_LIMIT + 1800)]

_PRESS = """python3 - <<END
from cerne.engine.qmp import QmpClient
from cerne.manager import Home, Manager
directory = Home.of_this_user().machine_runtime(Manager().get("m").id)
with QmpClient(directory / "qmp.sock") as qmp:
    qmp.system_powerdown()
END
"""

_STEPS = {
    "run": "cerne run -d --name m --max-cpus 2 --memory 192M --host-access 8000 --timeout 600s"
    f" {GUEST}",
    "grow": "inside m nproc; cerne set m --cpus 2",
    "inspect": "cerne inspect --json m",
    "processors": "inside m 'true & nproc; wait'",
    "tables": "inside m ls /sys/firmware/acpi/tables",
    "network": """
mkdir /tmp/served
echo heard >/tmp/served/f
python3 -m http.server --bind 127.0.0.1 --directory /tmp/served 8000 >/tmp/server 2>&1 &
eventually inside m wget -q -O- http://10.0.2.2:8000/f
""",
    "disk-attach": "cerne disk attach m 64M",
    "disk-comes": """
eventually inside m test -e /sys/block/vda/serial
inside m 'cat /sys/block/vda/serial; echo; echo here >/dev/vda; sync; head -c 5 /dev/vda'
""",
    "disk-detach": "cerne disk detach --timeout 60s m data1",
    "disk-is-gone": "inside m ls /sys/block; ls /cerne/disks | wc -l; cerne disk ls --json m",
    "nic-attach": """
cerne nic attach m >/tmp/nic
cerne nic ls --json m
""",
    "nic-comes": """
eventually inside m test -e /sys/class/net/eth1
inside m cat /sys/class/net/eth1/address
""",
    "balloon": """
available() { inside m "sed -n 's/MemAvailable: *//p' /proc/meminfo"; }
given() { cerne stats --json m | python3 -c "
import json, sys
raise SystemExit(json.load(sys.stdin)[0]['guest_memory_bytes'] != $1 << 20)"; }
available
cerne set m --balloon 150M
eventually given 150
available
cerne set m --balloon 192M
eventually given 192
available
""",
    "fork": """
inside m 'echo before >/tmp/f'
cerne fork m
inside m 'echo after >/tmp/f'
inside m-1 'hostname; nproc; cat /tmp/f'
""",
    "snapshot": """
inside m 'echo kept >/tmp/f'
cerne snapshot create m s1
inside m 'echo lost >/tmp/f'
cerne snapshot restore s1
inside m 'nproc; cat /tmp/f'
""",
    "kernel-log": "inside m dmesg",
    "reboot": """
up() { inside m cut -d. -f1 /proc/uptime; }
up
inside m 'reboot; sleep 100' 2>/tmp/why || test $? = 125
up
""",
    "rebooted": "inside m 'nproc; ls /tmp; cat /sys/class/net/eth1/address'",
    "nic-detach": """
cerne nic detach --timeout 60s m $(cat /tmp/nic)
inside m ls /sys/class/net
""",
    "power-button": f"""
pressed='head -c 24 /dev/input/event0 | od -An -tu2 >/dev/ttyS0; poweroff'
inside m "($pressed) </dev/null >/dev/null 2>&1 &"
sleep 2
{_PRESS}
cerne wait --timeout 120s m
cerne inspect --json m
""",
    "stop": "cerne stop --timeout 60s m-1; cerne inspect --json m-1",
    "events": "cerne events m",
    "console": "cerne logs m",
    "engine-logs": "cat /cerne/machines/*/engine.log",
}


@pytest.fixture(scope="module")
def report(qemu: Path, own_kernel: None) -> Report:
    return report_from(_STEPS, qemu=qemu, timeout=_LIMIT)


def test_it_is_taken_by_itself_and_has_no_helps(report: Report) -> None:
    report.said("run")
    machine = json.loads(report.said("inspect"))
    assert (machine["state"], machine["engine"]) == ("running", "native")
    assert "emulat" not in report.said("engine-logs")


def test_its_guest_has_two_processors_and_acpi(report: Report) -> None:
    assert report.said("processors") == "2\n"
    assert {"APIC", "DSDT", "FACP", "MCFG"} <= set(report.said("tables").split())
    log = report.said("kernel-log")
    assert "Linux version" in log
    for complaint in ("ACPI Error", "ACPI BIOS Error", "ACPI Warning", "Call Trace", "BUG:"):
        assert complaint not in log


def test_a_processor_comes_by_acpi(report: Report) -> None:
    # What is forked, restored and rebooted below has two as well.
    assert report.said("grow") == "1\nm\n"
    assert "CPU1 has been hot-added" in report.said("kernel-log")


def test_its_guest_has_a_network(report: Report) -> None:
    assert report.said("network").endswith("heard\n")


def test_a_disk_comes_and_goes_by_acpi(report: Report) -> None:
    assert report.said("disk-attach") == "data1\n"
    assert report.said("disk-comes") == "data1\nhere\n"
    assert report.said("disk-detach").startswith("/cerne/disks/")
    assert report.said("disk-is-gone") == "1\n[]\n"


def test_a_card_comes_outlives_a_reboot_and_goes_by_acpi(report: Report) -> None:
    _, card = json.loads(report.said("nic-attach"))
    assert report.said("nic-comes") == f"{card['mac']}\n"
    assert report.said("rebooted") == f"2\n{card['mac']}\n"
    assert report.said("nic-detach").split()[1:] == ["eth0", "lo"]


def test_a_balloon_grows_and_shrinks(report: Report) -> None:
    lines = [line for line in report.said("balloon").splitlines() if line.endswith("kB")]
    before, grown, after = (int(line.split()[0]) << 10 for line in lines)
    assert grown < before - 24 * MIB
    assert after > before - 12 * MIB


def test_it_is_forked(report: Report) -> None:
    assert report.said("fork") == "m-1\nm-1\n2\nbefore\n"


def test_it_goes_back_to_a_snapshot(report: Report) -> None:
    assert report.said("snapshot").endswith("2\nkept\n")


def test_it_reboots_in_place(report: Report) -> None:
    before, after = (int(line) for line in report.said("reboot").split())
    assert after < before


def test_its_power_button_is_pressed(report: Report) -> None:
    said = report.said("power-button")
    machine = json.loads(said[said.index("{") :])
    assert (machine["state"], machine["reason"]) == ("stopped", "the guest shut down")
    # linux/input-event-codes.h: EV_KEY, KEY_POWER, pressed.
    assert re.search(r"\b1 +116 +1\b", report.said("console"))


def test_a_fork_is_stopped(report: Report) -> None:
    said = report.said("stop")
    machine = json.loads(said[said.index("{") :])
    assert (machine["state"], machine["reason"]) == ("stopped", "shut down")
    assert "the guest shut down" in report.said("events")
