"""Guests that reboot, and guests whose kernel panics, on the engine `qemu`."""

from __future__ import annotations

from tests.e2e.conftest import KILL_INIT, Cerne

_REBOOT = ("sh", "-c", "echo lost >/tmp/f; reboot; sleep 100")


def test_a_guest_reboots_in_place(cerne: Cerne) -> None:
    cerne.ok("run", "-d", "--name", "a", "--engine", "qemu", "tiny")
    before = cerne.machine("a")
    assert cerne("exec", "a", "--", *_REBOOT).returncode == 125
    assert cerne.ok("exec", "a", "--", "sh", "-c", "ls /tmp; hostname") == "a\n"
    after = cerne.machine("a")
    assert (after["state"], after["pid"]) == ("running", before["pid"])
    cerne.ok("stop", "a")
    assert cerne.machine("a")["reason"] == "shut down"


def test_a_machine_for_one_command_that_reboots_is_removed(cerne: Cerne) -> None:
    assert cerne("run", "--rm", "--engine", "qemu", "tiny", "--", *_REBOOT).returncode == 125
    assert cerne.names() == []
    assert cerne.leftovers() == []


def test_a_panic_fails_the_machine_with_the_kernels_words(cerne: Cerne) -> None:
    cerne.ok("run", "-d", "--name", "a", "--engine", "qemu", "tiny")
    cerne("exec", "a", "--", "sh", "-c", KILL_INIT)
    assert cerne.ok("wait", "--timeout", "60s", "a") == "failed\n"
    reason = str(cerne.machine("a")["reason"])
    assert reason.startswith("the guest's kernel panicked: Attempted to kill init!")
    cerne.ok("start", "a")
    assert cerne.ok("exec", "a", "echo", "again") == "again\n"
