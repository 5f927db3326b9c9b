"""How a QEMU process ended, read from what it left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from cerne.engine.qemu.command_line import PID_FILE
from cerne.engine.qemu.ending import read_ending

REASON = "qemu_system_shutdown_request reason="
RUNS = "runstate_set current_run_state 6 (prelaunch) new_state 9 (running)\n"
PANIC = "[    0.4] Kernel panic - not syncing: VFS: Unable to mount root fs\r\n[    0.5] CPU: 0\r\n"


def leave(logs: Path, engine: str = "", console: str = "", *, pid_file: bool = False) -> None:
    (logs / "engine.log").write_text(engine)
    (logs / "console.log").write_text(console)
    if pid_file:
        (logs / PID_FILE).parent.mkdir()
        (logs / PID_FILE).write_text("1234\n")


@pytest.mark.parametrize(
    ("engine", "orderly", "reason"),
    [
        (f"{REASON}6\n", True, "the guest shut down"),
        (RUNS, True, "the guest shut down"),
        (f"{REASON}3\n", True, "it was told to reset"),
        (f"{REASON}2\n", True, "it was told to quit"),
        (f"{REASON}8\n", False, "the guest's kernel panicked"),
        (f"{REASON}1\n", False, "the host failed it (see the engine's log)"),
        (f"{REASON}4\nqemu: terminating on signal 15 from pid 1\n", True, "a signal asked"),
        ("qemu: terminating on signal 15 from pid 1\n", True, "a signal asked"),
        ("", True, "the guest shut down"),
        (f"{REASON}{'9' * 40}\n", True, "the guest shut down"),
    ],
)
def test_what_qemu_says_is_told(tmp_path: Path, engine: str, orderly: bool, reason: str) -> None:
    leave(tmp_path, engine)
    ending = read_ending(tmp_path)
    assert ending.orderly is orderly
    assert reason in ending.reason


def test_the_last_words_of_a_panicked_kernel_are_told(tmp_path: Path) -> None:
    leave(tmp_path, f"{REASON}8\n", PANIC.replace("VFS", "earlier") + PANIC)
    ending = read_ending(tmp_path)
    assert not ending.orderly
    assert ending.reason == "the guest's kernel panicked: VFS: Unable to mount root fs"


@pytest.mark.parametrize("engine", ["", RUNS, f"{REASON}6\n"])
def test_a_guest_that_shut_down_later_did_not_panic(tmp_path: Path, engine: str) -> None:
    leave(tmp_path, engine, f"echo '{PANIC}'")
    assert read_ending(tmp_path).orderly


def test_a_pid_file_left_behind_tells_of_a_kill(tmp_path: Path) -> None:
    leave(tmp_path, RUNS, pid_file=True)
    ending = read_ending(tmp_path)
    assert not ending.orderly
    assert ending.reason == "its process was killed"


def test_the_last_words_of_a_crashed_process_are_told(tmp_path: Path) -> None:
    leave(tmp_path, "qemu: hw/virtio/virtio.c:42: Assertion failed\n\n", pid_file=True)
    ending = read_ending(tmp_path)
    assert not ending.orderly
    assert "Assertion failed" in ending.reason


def test_no_logs_at_all_are_no_obstacle(tmp_path: Path) -> None:
    assert read_ending(tmp_path / "none").orderly
