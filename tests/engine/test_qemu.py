"""Real QEMU processes whose guests are boot sectors of a few bytes, run by the firmware."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
from tests.processes import naming

from cerne.engine import cards
from cerne.engine.plan import DiskPlan, FirmwareBoot, LaunchPlan, PortForward, UserNic
from cerne.engine.qemu import QemuEngine
from cerne.engine.qemu.accelerator import Accelerator
from cerne.engine.qemu.command_line import PID_FILE
from cerne.engine.qmp import QmpClient
from cerne.errors import (
    ConflictError,
    EngineError,
    HostError,
    InputError,
    MissingProgramError,
    StorageError,
)
from cerne.host import user_ids
from cerne.host.members import Members
from cerne.host.process_walls import walls_of
from cerne.host.programs import require_program

# 16-bit code, as a PC's firmware loads it at 0x7c00.
HALT = bytes.fromhex("f4ebfd")  # again: hlt; jmp again
GREET = bytes.fromhex("baf803b043ee")  # mov dx, 0x3f8; mov al, 'C'; out dx, al
POWER_OFF = bytes.fromhex("ba0406b80020ef")  # mov dx, 0x604 (PM1a); mov ax, 0x2000 (S5); out dx, ax
RESET = bytes.fromhex("b0fee664")  # mov al, 0xfe; out 0x64, al

TIMEOUT = 60.0
_CARD = UserNic("02:00:00:00:00:01")

MakePlan: TypeAlias = Callable[..., LaunchPlan]


@pytest.fixture
def engine(qemu: Path) -> QemuEngine:
    return QemuEngine(Accelerator.TCG)


@pytest.fixture
def make_plan(directory: Path) -> Iterator[MakePlan]:
    """Makes a plan of a machine that runs a boot sector; what still runs of it is killed."""
    plans: list[LaunchPlan] = []

    def make(code: bytes = HALT, **changes: object) -> LaunchPlan:
        runtime, logs = directory / "run", directory / "a log, with a comma"
        runtime.mkdir()
        logs.mkdir()
        disk = directory / "disk.raw"
        disk.write_bytes((code + HALT).ljust(510, b"\0") + b"\x55\xaa")
        # The firmware boots from no disk of less than a cylinder.
        os.truncate(disk, 2 << 20)
        plan = LaunchPlan(
            machine_id="m",
            name="sector",
            cpus=1,
            memory=64 << 20,
            boot=FirmwareBoot(),
            disks=(DiskPlan(disk, "raw"),),
            nics=(),
            shares=(),
            runtime=runtime,
            logs=logs,
        )
        plans.append(dataclasses.replace(plan, **changes))  # type: ignore[arg-type]
        return plans[-1]

    yield make
    for plan in plans:
        Members(plan.runtime).end()


def test_a_guest_that_shuts_down_ends_in_order(engine: QemuEngine, make_plan: MakePlan) -> None:
    plan = make_plan(GREET + POWER_OFF)
    engine.require(plan)
    process = engine.start(plan).process
    assert process.wait(TIMEOUT)
    ending = engine.ending(plan.logs)
    assert ending.orderly
    assert ending.reason == "the guest shut down"
    assert "C" in plan.console_log.read_text()


@pytest.mark.parametrize("change", [{}, {"headroom": 256 << 20}, {"nics": (_CARD,)}])
def test_it_has_walls_whatever_it_needs(
    root: None, engine: QemuEngine, make_plan: MakePlan, change: dict[str, object]
) -> None:
    if not user_ids.has_range():
        pytest.skip("this user namespace has no user ids for machines")
    plan = make_plan(**change)
    seen = walls_of("machine", engine.start(plan).process.pid, plan.engine_log)
    assert seen is not None
    # A card that QEMU itself serves is one of the host's network.
    assert seen.missing.keys() <= {"no-dump", "landlock", *(["network"] if plan.nics else [])}


def test_a_guest_that_reboots_begins_anew(engine: QemuEngine, make_plan: MakePlan) -> None:
    plan = make_plan(GREET + RESET)
    process = engine.start(plan).process
    with QmpClient(plan.qmp_socket) as qmp:
        for _ in range(2):
            assert qmp.wait_event("RESET", timeout=TIMEOUT).data["reason"] == "guest-reset"
        assert qmp.status() == "running"
        qmp.quit()
    assert process.wait(TIMEOUT)
    assert engine.ending(plan.logs).reason == "it was told to quit"


def test_a_machine_is_paused_resumed_and_quit(engine: QemuEngine, make_plan: MakePlan) -> None:
    plan = make_plan()
    process = engine.start(plan).process
    with QmpClient(plan.qmp_socket) as qmp:
        assert qmp.status() == "running"
        qmp.stop()
        assert qmp.status() == "paused"
        qmp.cont()
        qmp.system_powerdown()
        assert qmp.wait_event("POWERDOWN", timeout=TIMEOUT).name == "POWERDOWN"
    with QmpClient(plan.qmp_socket) as qmp:
        qmp.quit()
    assert process.wait(TIMEOUT)
    assert engine.ending(plan.logs).reason == "it was told to quit"


def test_a_killed_process_is_told_from_one_that_ended(
    engine: QemuEngine, make_plan: MakePlan
) -> None:
    plan = make_plan()
    process = engine.start(plan).process
    process.send(signal.SIGKILL)
    assert process.wait(TIMEOUT)
    ending = engine.ending(plan.logs)
    assert not ending.orderly
    assert ending.reason == "its process was killed"


def test_the_process_has_a_session_and_an_environment_of_its_own(
    engine: QemuEngine, make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "1234")
    plan = make_plan()
    process = engine.start(plan).process
    proc = Path(f"/proc/{process.pid}")
    assert os.getsid(process.pid) == process.pid
    assert (proc / "environ").read_bytes() == b"LC_ALL=C\0"
    assert (proc / "cwd").readlink() == Path("/")
    assert (proc / "fd/0").readlink() == Path("/dev/null")
    assert "Seccomp:\t2" in (proc / "status").read_text()


def test_what_a_former_process_made_beside_its_pid_does_not_keep_it_from_a_start(
    engine: QemuEngine, make_plan: MakePlan
) -> None:
    plan = make_plan()
    (plan.logs / PID_FILE / "nothing").mkdir(parents=True)
    process = engine.start(plan).process
    assert int((plan.logs / PID_FILE).read_text()) == process.pid


def test_the_process_of_root_has_its_own_user_and_root(
    engine: QemuEngine, make_plan: MakePlan, root: None
) -> None:
    process = engine.start(make_plan()).process
    proc = Path(f"/proc/{process.pid}")
    lines = (proc / "status").read_text().splitlines()
    status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    (user,) = {*status["Uid"], *status["Gid"]}
    assert status["Groups"] == []
    assert status["NoNewPrivs"] == ["1"]
    sets = {status[f"Cap{kind}"][0] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")}
    assert sets == {"0" * 16}
    assert not (proc / "root/etc/shadow").exists()
    assert not (proc / "root/proc/sys").exists()
    other = user_ids.take()
    assert other is not None
    os.close(other.descriptor)
    assert user not in ("0", str(other.user))


def test_all_sockets_are_there_once_it_is_started(engine: QemuEngine, make_plan: MakePlan) -> None:
    plan = make_plan()
    engine.start(plan)
    for path in (plan.console_socket, *plan.agent_sockets):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_what_qemu_refuses_is_told_and_leaves_nothing(
    engine: QemuEngine, make_plan: MakePlan, directory: Path
) -> None:
    wrong = directory / "wrong.qcow2"
    wrong.write_bytes(bytes(512))
    plan = make_plan(disks=(DiskPlan(wrong, "qcow2"),))
    with pytest.raises(EngineError, match="not in qcow2 format"):
        engine.start(plan)
    assert naming(plan.runtime) == []


def test_a_disk_that_is_not_there_is_named(
    engine: QemuEngine, make_plan: MakePlan, directory: Path
) -> None:
    plan = make_plan(disks=(DiskPlan(directory / "missing.raw", "raw"),))
    with pytest.raises(StorageError, match=r"missing\.raw.*No such file"):
        engine.start(plan)
    assert naming(plan.runtime) == []


def test_a_port_that_is_taken_meanwhile_is_named(engine: QemuEngine, make_plan: MakePlan) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port: int = other.getsockname()[1]
        nic = UserNic("02:00:00:00:00:01", (PortForward("127.0.0.1", port, 80),))
        plan = make_plan(nics=(nic,))
        with pytest.raises(ConflictError, match=str(port)):
            engine.require(plan)
        with pytest.raises(ConflictError, match=str(port)):
            engine.start(plan)
        assert naming(plan.runtime) == []


def test_a_second_start_of_one_disk_is_refused(engine: QemuEngine, make_plan: MakePlan) -> None:
    plan = make_plan()
    engine.start(plan)
    runtime, logs = plan.runtime.with_name("run2"), plan.logs.with_name("logs2")
    runtime.mkdir()
    logs.mkdir()
    with pytest.raises(EngineError, match="another process"):
        engine.start(dataclasses.replace(plan, runtime=runtime, logs=logs))


def test_paths_too_long_for_a_socket_are_refused(engine: QemuEngine, make_plan: MakePlan) -> None:
    plan = make_plan(runtime=Path("/run") / ("x" * 100))
    with pytest.raises(HostError, match="too long"):
        engine.require(plan)


def test_a_machine_with_nothing_to_boot_is_refused(engine: QemuEngine, make_plan: MakePlan) -> None:
    with pytest.raises(InputError, match="boot from"):
        engine.require(make_plan(disks=()))


def test_ports_of_ipv6_need_passt(
    engine: QemuEngine, make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Path:
        if name == "passt":
            raise MissingProgramError("passt is not installed")
        return require_program(name)

    monkeypatch.setattr(cards, "require_program", missing)
    nic = UserNic("02:00:00:00:00:01", (PortForward("::1", 8080, 80),))
    with pytest.raises(MissingProgramError, match="passt"):
        engine.require(make_plan(nics=(nic,)))
