"""Guests that reboot, and guests whose kernel panics."""

from __future__ import annotations

import pytest
from tests.e2e.conftest import KILL_INIT, Cerne, Engine

_REBOOT = ("sh", "-c", "echo lost >/tmp/f; reboot; sleep 1000")


@pytest.mark.slow_if_emulated
def test_a_guest_reboots_in_place(cerne: Cerne, engine: Engine) -> None:
    cerne.ok("run", "-d", "--name", "a", *engine.options, "tiny")
    before = cerne.machine("a")
    assert cerne("exec", "a", "--", *_REBOOT).returncode == 125
    assert cerne.ok("exec", "a", "--", "sh", "-c", "ls /tmp; hostname") == "a\n"
    assert cerne.ok("exec", "a", "--", "ip", "-o", "-4", "addr", "show", "eth0") != ""
    after = cerne.machine("a")
    assert (after["state"], after["pid"]) == ("running", before["pid"])
    cerne.ok("fork", "a", "--name", "child")
    assert cerne.ok("exec", "child", "hostname") == "child\n"
    cerne.ok("stop", "a")
    assert cerne.machine("a")["reason"] == "shut down"


@pytest.mark.slow_if_emulated
def test_a_machine_for_one_command_that_reboots_is_removed(cerne: Cerne, engine: Engine) -> None:
    assert cerne("run", "--rm", *engine.options, "tiny", "--", *_REBOOT).returncode == 125
    assert cerne.names() == []
    assert cerne.leftovers() == []


@pytest.mark.slow_if_emulated
def test_a_panic_fails_the_machine_with_the_kernels_words(cerne: Cerne, engine: Engine) -> None:
    cerne.ok("run", "-d", "--name", "a", *engine.options, "tiny")
    cerne("exec", "a", "--", "sh", "-c", KILL_INIT)
    assert cerne.ok("wait", "--timeout", "200s", "a") == "failed\n"
    reason = str(cerne.machine("a")["reason"])
    assert reason.startswith("the guest's kernel panicked: Attempted to kill init!")


@pytest.mark.slow_if_emulated
def test_a_machine_whose_kernel_panicked_starts_again(cerne: Cerne, engine: Engine) -> None:
    cerne.ok("run", "-d", "--name", "a", *engine.options, "tiny")
    cerne("exec", "a", "--", "sh", "-c", KILL_INIT)
    assert cerne.ok("wait", "--timeout", "200s", "a") == "failed\n"
    cerne.ok("start", "a")
    assert cerne.ok("exec", "a", "echo", "again") == "again\n"
