"""The VMM's process with guests of a few bytes: how they speak, end and crash."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.guests.harness import Running, ask, running
from tests.waiting import PATIENCE

from cerne.engine.qmp import QmpClient
from cerne.errors import EngineError
from cerne.units import MIB
from cerne.vmm.end import PANICKED

# 64-bit code, entered as Linux is. Ports: 0x3f8 is the serial port, 0x600 ACPI's sleep control,
# 0x64 the keyboard controller.
_SAY_HI = bytes.fromhex("66baf803 b068 ee b069 ee")
_POWER_OFF = bytes.fromhex("66ba0006 b034 ee f4")
_RESET = bytes.fromhex("b0fe e664 f4")
_TRIPLE_FAULT = bytes.fromhex("0f011c2500000000 0f0b")
_HALT = bytes.fromhex("f4")
# Has the other processors write an "a" and loop, in real mode, and loops.
_START_OTHERS = bytes.fromhex(
    "48b8baf803b061eeebfe 4889042500800000 b80003e0fe c70000450c00 c70008460c00 ebfe"
)
_LOOP = bytes.fromhex("ebfe")
_ECHO = bytes.fromhex("66bafd03 ec a801 74f7 66baf803 ec ee ebef")
# Waits for a byte; then has the panic notifier, in slot 3, decode its memory, and writes to it.
_PANIC = bytes.fromhex(
    "66bafd03 ec a801 74f7 66baf80c b804180080 ef 66bafc0c b002 ee b8000003c0 c6003f"
)
# Answers each byte with a byte of its memory, one more after each "i".
_COUNT = bytes.fromhex(
    "66bafd03eca80174f766baf803ec3c697507fe0425000020008a04250000200066baf803eeebd9"
)
_TOUCH_NOTHING = bytes.fromhex("b8000000d0 8b08 8908")


Run = Callable[[bytes], contextlib.AbstractContextManager[Running]]


@pytest.fixture
def run(home: Path, small_kernel: Callable[[Path, bytes], Path]) -> Run:
    """Runs a VMM with a guest that is nothing but this code."""
    return lambda code: running(home, small_kernel(home / "kernel", code))


def test_a_guest_speaks_and_powers_off(run: Run, kvm_device: Path) -> None:
    with run(_SAY_HI + _POWER_OFF) as machine:
        assert machine.end() == (True, "the guest shut down")
        assert machine.console() == b"hi"
        assert machine.process.returncode == 0


def test_a_guest_that_resets_for_ever_begins_anew_and_can_be_stopped(
    run: Run, kvm_device: Path
) -> None:
    with run(_SAY_HI + _RESET) as machine, QmpClient(machine.qmp) as client:
        events = [client.wait_event("RESET", timeout=PATIENCE) for _ in range(5)]
        assert events[0].data == {"guest": True, "reason": "guest-reset"}
        assert client.status() == "running"
        client.stop()
        assert client.status() == "paused"
        said = machine.console()
        # It may be paused in the midst of its words.
        assert (b"hi" * len(said)).startswith(said)
        assert len(said) >= 10
        client.cont()
        client.wait_event("RESET", timeout=PATIENCE)
        client.quit()
        assert machine.end() == (True, "it was told to quit")


def test_a_reset_clears_memory_and_keeps_whoever_is_connected(run: Run, kvm_device: Path) -> None:
    with (
        run(_COUNT) as machine,
        QmpClient(machine.qmp) as client,
        machine.connected() as console,
    ):
        assert ask(console, b"ii") == b"\1\2"
        client.execute("system_reset")
        reset = client.wait_event("RESET", timeout=PATIENCE)
        assert reset.data == {"guest": False, "reason": "host-qmp-system-reset"}
        assert ask(console, b"i") == b"\1"


def test_a_paused_machine_is_reset_and_stays_paused(run: Run, kvm_device: Path) -> None:
    with (
        run(_COUNT) as machine,
        QmpClient(machine.qmp) as client,
        machine.connected() as console,
    ):
        assert ask(console, b"ii") == b"\1\2"
        client.stop()
        client.execute("system_reset")
        client.wait_event("RESET", timeout=PATIENCE)
        assert client.status() == "paused"
        client.cont()
        assert ask(console, b"i") == b"\1"


def test_what_is_open_stays_as_much_however_often_it_resets(run: Run, kvm_device: Path) -> None:
    with run(_COUNT) as machine, QmpClient(machine.qmp) as client:
        client.execute("system_reset")
        client.wait_event("RESET", timeout=PATIENCE)
        files = len(machine.files())
        for _ in range(10):
            client.execute("system_reset")
            client.wait_event("RESET", timeout=PATIENCE)
        assert len(machine.files()) == files


def test_a_panic_is_a_failure_whatever_the_kernel_does_next(run: Run, kvm_device: Path) -> None:
    with run(_PANIC.replace(b"?", b"\1") + _RESET) as machine:
        with QmpClient(machine.qmp) as client, machine.connected() as console:
            console.send(b"!")
            assert client.wait_event("GUEST_PANICKED", timeout=PATIENCE).data == {
                "action": "poweroff"
            }
            shutdown = client.wait_event("SHUTDOWN", timeout=PATIENCE)
            assert shutdown.data == {"guest": True, "reason": "guest-panic"}
        assert machine.end() == (False, PANICKED)
        assert machine.process.returncode == 1


def test_a_kernel_for_crashes_takes_over(run: Run, kvm_device: Path) -> None:
    with (
        run(_PANIC.replace(b"?", b"\2") + _RESET) as machine,
        QmpClient(machine.qmp) as client,
        machine.connected() as console,
    ):
        console.send(b"!")
        loaded = client.wait_event("GUEST_CRASHLOADED", timeout=PATIENCE)
        assert loaded.data == {"action": "run"}
        client.wait_event("RESET", timeout=PATIENCE)
        assert client.status() == "running"


def test_a_triple_fault_is_a_crash_with_registers(run: Run, kvm_device: Path) -> None:
    with run(_TRIPLE_FAULT) as machine:
        orderly, reason = machine.end()
        assert not orderly
        place = "vCPU 0 at 0x100008, 64-bit code in ring 0"
        assert reason == f"the guest crashed: a triple fault on {place}"
        report = machine.errors()
        assert "reboot=t" in report
        assert "rip=0x100008" in report
        assert f"{_TRIPLE_FAULT[:8].hex(' ')} <0f> 0b" in report


def test_memory_that_is_not_there_harms_nobody(run: Run, kvm_device: Path) -> None:
    with run(_TOUCH_NOTHING + _SAY_HI + _POWER_OFF) as machine:
        assert machine.end() == (True, "the guest shut down")


def test_it_is_paused_resumed_and_told_to_quit(run: Run, kvm_device: Path) -> None:
    with run(_LOOP) as machine:
        with QmpClient(machine.qmp) as client:
            assert client.status() == "running"
            client.stop()
            assert client.status() == "paused"
            client.cont()
            assert client.status() == "running"
            client.quit()
        assert machine.end() == (True, "it was told to quit")


def test_its_balloon_and_threads_are_told_as_qemu_tells_them(run: Run, kvm_device: Path) -> None:
    with run(_LOOP) as machine, QmpClient(machine.qmp) as client:
        assert client.execute("balloon", {"value": 8 * MIB}) == {}
        # It has no driver: the guest keeps what it has, and tells nothing.
        assert client.execute("query-balloon") == {"actual": 16 * MIB}
        device = {"path": "/machine/peripheral/balloon"}
        interval = {**device, "property": "guest-stats-polling-interval"}
        assert client.execute("qom-set", {**interval, "value": 1}) == {}
        assert client.execute("qom-get", interval) == 1
        assert client.execute("qom-set", {**interval, "value": 0}) == {}
        told = client.execute("qom-get", {**device, "property": "guest-stats"})
        assert isinstance(told, dict)
        assert told["last-update"] == 0
        assert set(told["stats"].values()) == {(1 << 64) - 1}
        for wrong in (
            {**device, "property": "colour"},
            {"path": "/", "property": "guest-stats"},
        ):
            with pytest.raises(EngineError, match="has no property"):
                client.execute("qom-get", wrong)
        for value in (0, -1, "8M"):
            with pytest.raises(EngineError):
                client.execute("balloon", {"value": value})
        assert client.execute("query-blockstats") == []
        assert client.execute("cerne-query-traffic") == {"received": 0, "sent": 0}
        (counted,) = [*_list(client.execute("query-stats", {"target": "vcpu"}))]
        assert _list(counted["stats"])[0]["name"] == "exits"
        assert client.execute("query-stats", {"target": "vm"}) == []
        (processor,) = [*_list(client.execute("query-cpus-fast"))]
        assert processor["thread-id"] != machine.process.pid
        assert Path(f"/proc/{machine.process.pid}/task/{processor['thread-id']}").exists()


def _list(value: object) -> list[dict[str, object]]:
    assert isinstance(value, list)
    return value


@pytest.mark.parametrize("code", [_LOOP, _HALT, _ECHO, _SAY_HI + _RESET, _START_OTHERS])
def test_processors_are_paused_whatever_they_are_at(
    home: Path, kvm_device: Path, small_kernel: Callable[[Path, bytes], Path], code: bytes
) -> None:
    with running(home, small_kernel(home / "kernel", code), cpus=3) as machine:
        with QmpClient(machine.qmp) as client:
            if code == _START_OTHERS:
                machine.wait_for(b"aa")
            for _ in range(20):
                client.stop()
                assert client.status() == "paused"
                said = machine.console()
                client.stop()
                assert machine.console() == said
                client.cont()
                client.cont()
                assert client.status() == "running"
            client.quit()
        assert machine.end() == (True, "it was told to quit")


def test_a_machine_that_ends_as_it_is_paused_is_not_brought_back(
    run: Run, kvm_device: Path
) -> None:
    with run(_PANIC.replace(b"?", b"\1") + _LOOP) as machine:
        with contextlib.suppress(EngineError), QmpClient(machine.qmp) as client:
            with machine.connected() as console:
                console.send(b"!")
            while True:
                client.stop()
                client.cont()
        assert machine.end() == (False, PANICKED)


def test_a_signal_ends_it_in_order(run: Run, kvm_device: Path) -> None:
    with run(_LOOP) as machine:
        with QmpClient(machine.qmp) as client:
            assert client.status() == "running"
            machine.process.terminate()
            shutdown = client.wait_event("SHUTDOWN", timeout=PATIENCE)
            assert shutdown.data == {"guest": False, "reason": "host-signal"}
        assert machine.end() == (True, "a signal asked its process to end")


def test_its_console_goes_both_ways(run: Run, kvm_device: Path) -> None:
    with run(_ECHO) as machine, QmpClient(machine.qmp) as client:
        with machine.connected() as console:
            assert ask(console, b"echoed") == b"echoed"
        client.quit()
        machine.end()
        assert machine.console() == b"echoed"


def test_a_kernel_that_is_none_is_refused_in_words(run: Run, kvm_device: Path) -> None:
    with run(b"") as machine:
        machine.process.wait(PATIENCE)
        assert machine.process.stderr is not None
        said = machine.process.stderr.read()
        assert b"no segment to load" in said
        assert b"Traceback" not in said
