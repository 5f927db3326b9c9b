"""Resources of machines on both engines, on a host with version 2 of control groups.

The host (tests/e2e/host_at_speed.py) has cores of two threads, two NUMA nodes, and a kernel with
core scheduling. One boot runs all the steps, in the order in which they stand here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.host_at_speed import GUEST, Report, Shape, report_from, require_disk_maker
from tests.e2e.host_kernel import kernel_with_core_scheduling

from cerne.manager import Home
from cerne.units import MIB

_LIMIT = 2400
"""Seconds for the host and all its steps, which take five minutes where little else runs."""
_ENGINES = ("native", "qemu")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(_LIMIT + 1800)]

_NODES = (
    *("-smp", "4,sockets=2,cores=1,threads=2", "-m", "2G"),
    *("-object", "memory-backend-ram,id=m0,size=1G"),
    *("-object", "memory-backend-ram,id=m1,size=1G"),
    *("-numa", "node,nodeid=0,memdev=m0,cpus=0-1", "-numa", "node,nodeid=1,memdev=m1,cpus=2-3"),
)

_LOOK = """
cat >/tmp/look.py <<'END'
import ctypes, json, pathlib, re, sys
libc = ctypes.CDLL(None)
FILES = ("cpu.weight", "cpu.max", "memory.min", "memory.low", "memory.high", "memory.max",
    "memory.swap.max", "io.weight", "pids.max", "cpuset.cpus", "cpuset.mems")
COUNTED = ("memory.current", "memory.swap.current", "pids.current")
def cookie(pid):
    found = ctypes.c_uint64()
    words = (ctypes.c_ulong(each) for each in (0, pid, 0, ctypes.addressof(found)))
    return found.value if libc.prctl(62, *words) == 0 else None
def pairs(file):
    words = file.read_text().split()
    return dict(zip(words[::2], map(int, words[1::2])))
def placed(pid):
    # Kilobytes of private pages by node.
    nodes = {}
    for line in pathlib.Path(f"/proc/{pid}/numa_maps").read_text().splitlines():
        if "anon=" in line:
            for node, pages in re.findall(r"N(\\d+)=(\\d+)", line):
                nodes[node] = nodes.get(node, 0) + 4 * int(pages)
    return nodes
def process(pid):
    words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\\0")
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    allowed = re.findall(r"(?:Cpus|Mems)_allowed_list:\\s*(\\S+)", status)
    name = re.search(r"Name:\\s*(.*)", status)[1]
    return {"name": name, "cookie": cookie(pid), "placed": placed(pid), "allowed": allowed}
def machine(name):
    (group,) = pathlib.Path("/sys/fs/cgroup").glob(f"**/cerne-{name}")
    return {
        "files": {file: (group / file).read_text().strip() for file in FILES},
        "counted": {file: int((group / file).read_text()) for file in COUNTED},
        "cpu": pairs(group / "cpu.stat"), "memory": pairs(group / "memory.events"),
        "processes": [process(int(pid)) for pid in (group / "cgroup.procs").read_text().split()],
    }
print(json.dumps({name: machine(id) for name, id in (w.split("=") for w in sys.argv[1:])}))
END
id_of() { python3 -c "
from cerne.manager import Manager
print(Manager().get('$1').id)"; }
echo "look() { python3 /tmp/look.py native=$(id_of native) qemu=$(id_of qemu); }" >/tmp/look.sh
. /tmp/look.sh
look
"""
_LIMITS = (
    "--cpu-limit 90% --cpu-weight 300 --memory-guarantee 128M --memory-limit 512M"
    " --memory-swap no --disk-weight 50 --pids-limit 200 --numa-node 1"
)


def _run(engine: str) -> str:
    options = f"--engine {engine} --memory 128M --isolation strict --timeout 600s"
    return f"cerne run -d --name {engine} {options} {_LIMITS} {GUEST}"


_SEEN = "inside ${name:-m} 'md5sum /tmp/f; grep MemTotal /proc/meminfo'"
_STEPS = {
    "host": """
mount -t cgroup2 none /sys/fs/cgroup
cat /sys/devices/system/cpu/smt/active /sys/devices/system/node/has_memory
cerne capacity
""",
    "native": _run("native"),
    "qemu": _run("qemu"),
    "look": _LOOK,
    "cards": "cerne nic attach native >/dev/null; cerne nic attach qemu >/dev/null",
    "look-at-cards": ". /tmp/look.sh; look",
    "set": """
. /tmp/look.sh
for name in native qemu; do
    cerne set $name --cpu-limit 20% --cpu-weight 50 --memory-guarantee none --memory-limit 400M \\
        --memory-swap yes --disk-weight 200 --pids-limit 100
done
look
inside native 'timeout 6 sh -c "while :; do :; done"' || true
inside qemu 'timeout 6 sh -c "while :; do :; done"' || true
look
""",
    "weigh": """
. /tmp/look.sh
cerne set native --cpu-limit none --cpu-weight 1000 --cpu-pin 2
cerne set qemu --cpu-limit none --cpu-weight 100 --cpu-pin 2
inside native 'timeout 40 sh -c "while :; do :; done"' &
inside qemu 'timeout 40 sh -c "while :; do :; done"' &
sleep 12
look
sleep 16
look
wait
""",
    "move": """
. /tmp/look.sh
for name in native qemu; do cerne set $name --cpu-pin none --numa-node 0; done
sleep 2
look
""",
    "grow": f"""
cerne run -d --engine native --name m --memory 128M --timeout 600s {GUEST}
cerne set m --memory 256M
cat >/tmp/free <<'END'
awk '/zone +Movable/ {{ z = 1 }} z && /pages free/ {{ print $3; exit }}' /proc/zoneinfo
END
cerne cp /tmp/free m:/tmp/free
inside m 'sh /tmp/free; dd if=/dev/urandom of=/tmp/f bs=1M count=8 2>/dev/null; sh /tmp/free'
{_SEEN}
""",
    "fork": f"""
cerne fork m
inside m 'rm /tmp/f'
name=m-1
{_SEEN}
""",
}


@pytest.fixture(scope="module")
def report(qemu: Path, own_kernel: None) -> Report:
    require_disk_maker()
    kernel = kernel_with_core_scheduling(Home.of_this_user().cache)
    shape = Shape("qemu-system-x86,util-linux", kernel, _NODES)
    return report_from(_STEPS, qemu=qemu, timeout=_LIMIT, shape=shape)


@pytest.fixture(params=_ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _looks(report: Report, step: str, engine: str) -> list[dict[str, Any]]:
    lines = [line for line in report.said(step).splitlines() if line.startswith('{"native"')]
    return [json.loads(line)[engine] for line in lines]


def test_each_limit_is_written(report: Report, engine: str) -> None:
    (look,) = _looks(report, "look", engine)
    assert look["files"] == {
        "cpu.weight": "300",
        "cpu.max": "90000 100000",
        "memory.min": str(128 * MIB),
        "memory.low": "0",
        "memory.high": str(496 * MIB),
        "memory.max": str(512 * MIB),
        "memory.swap.max": "0",
        "io.weight": "default 50",
        "pids.max": "200",
        "cpuset.cpus": "2-3",
        "cpuset.mems": "1",
    }


def test_each_limit_changes_while_it_runs(report: Report, engine: str) -> None:
    files = _looks(report, "set", engine)[0]["files"]
    assert (files["cpu.max"], files["cpu.weight"]) == ("20000 100000", "50")
    assert (files["memory.min"], files["memory.swap.max"]) == ("0", "max")
    assert files["memory.max"] == str(400 * MIB)
    assert files["memory.high"] == str(400 * MIB * 31 // 32)
    assert (files["io.weight"], files["pids.max"]) == ("default 200", "100")


def test_its_cpu_limit_holds(report: Report, engine: str) -> None:
    before, after = (look["cpu"] for look in _looks(report, "set", engine))
    periods = after["nr_periods"] - before["nr_periods"]
    assert after["nr_throttled"] > before["nr_throttled"] + 10
    used = after["usage_usec"] - before["usage_usec"]
    # A period may have a tick of the clock more, which a later one lacks.
    assert used < (periods + 2) * 20_000 * 1.25


def test_weights_share_a_cpu(report: Report) -> None:
    shares = []
    for name in _ENGINES:
        before, after = (look["cpu"]["usage_usec"] for look in _looks(report, "weigh", name))
        shares.append(after - before)
    # Ten to one, less what the host's own processes do there.
    assert 4 < shares[0] / shares[1] < 15


def test_it_is_on_one_node_and_moves_to_another(report: Report, engine: str) -> None:
    (there,) = _looks(report, "look", engine)
    (moved,) = _looks(report, "move", engine)
    for look, node, cpus in ((there, "1", "2-3"), (moved, "0", "0-1")):
        for process in look["processes"]:
            assert process["allowed"] == [cpus, node]
        largest = max(look["processes"], key=lambda each: sum(each["placed"].values()))
        placed = largest["placed"]
        assert placed[node] > 0.97 * sum(placed.values())


def test_a_machine_that_has_grown_is_forked(report: Report) -> None:
    before, after, *seen = report.said("grow").splitlines()[-4:]
    # What it writes is in the memory that was plugged.
    assert int(before) - int(after) >= 8 * MIB // 4096
    assert int(seen[1].split()[1]) > 200 * 1024
    assert report.said("fork").splitlines()[-2:] == seen


def test_no_two_processes_of_strict_machines_share_a_cookie(report: Report) -> None:
    assert report.said("host").startswith("1\n0-1\n")
    looks = [_looks(report, "look-at-cards", name)[0] for name in _ENGINES]
    cookies = [{process["cookie"] for process in look["processes"]} for look in looks]
    assert all(cookie for each in cookies for cookie in each)
    assert not cookies[0] & cookies[1]
    # The machine itself, and for each of two cards passt with its supervisor.
    assert all(len(each) >= 3 for each in cookies)
