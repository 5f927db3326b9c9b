"""The walls around processes, as the kernel shows them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cerne.engine.detached import START
from cerne.host import user_ids
from cerne.host.process_walls import ProcessWalls, walls_of
from cerne.vmm.jail.bpf import ALLOW, program
from cerne.vmm.jail.calls import PROGRAM_CALLS
from cerne.vmm.jail.program import FILE_CAPABILITIES, Room

Eventually = Callable[[Callable[[], bool]], None]
_SLEEP = ("/bin/sleep", "1000")


def _seen(command: list[str], eventually: Eventually, log: Path) -> ProcessWalls:
    with subprocess.Popen(command) as started:
        try:
            eventually(
                lambda: Path(f"/proc/{started.pid}/cmdline").read_bytes().startswith(b"/bin/sleep")
            )
            seen = walls_of("net0", started.pid, log)
        finally:
            started.kill()
    assert seen is not None
    assert (seen.role, seen.pid) == ("net0", started.pid)
    assert walls_of("net0", started.pid, log) is None
    return seen


def test_a_process_without_walls_has_a_reason_for_each(
    root: None, eventually: Eventually, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    log.write_text("this host lacks root: Operation not permitted\nanother line\n")
    seen = _seen(["prlimit", "--core=1", *_SLEEP], eventually, log)
    assert seen.user == 0
    assert set(seen.up) <= {"landlock"}
    missing = dict(seen.missing)
    missing.pop("landlock", None)
    assert missing == {
        "limits": "it writes core dumps",
        "namespaces": "it shares the host's: mnt, ipc, uts",
        "network": "it shares the host's: net",
        "root": "its root is the host's: Operation not permitted",
        "user": "it has root's id",
        "capabilities": "it has most",
        "no-new-privileges": "it is not set",
        "seccomp": "it has no filter",
    }


@pytest.mark.parametrize("own", [True, False])
def test_a_program_in_its_room_has_all_that_it_needs_not(
    root: None, eventually: Eventually, tmp_path: Path, own: bool
) -> None:
    lease = user_ids.take()
    if lease is None:
        pytest.skip("this user namespace has no user ids for machines")
    room = Room(
        own_root=True,
        user=lease.user if own else None,
        programs=[_SLEEP[0]],
        network=not own,
        capabilities=() if own else FILE_CAPABILITIES,
        filter=program(PROGRAM_CALLS, ALLOW),
    )
    log = tmp_path / "log"
    log.write_text("this host lacks landlock: Operation not supported\n")
    seen = _seen([*START, "program", *room.words(), *_SLEEP], eventually, log)
    os.close(lease.descriptor)
    lacks = {"landlock": "Operation not supported"}
    if not own:
        lacks |= {
            "network": "it shares the host's: net",
            "user": "it has root's id",
            "capabilities": "it has chown, dac_override, dac_read_search, fowner",
        }
    assert {**seen.missing, "no-dump": ""} == {**lacks, "no-dump": ""}
    assert {"limits", "namespaces", "root", "no-new-privileges", "seccomp"} <= set(seen.up)
