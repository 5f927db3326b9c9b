"""User ids of machines: each has one, as long as one of its processes runs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cerne.errors import ConflictError, InputError
from cerne.host import user_ids
from cerne.host.user_ids import RANGE_VARIABLE, Lease


@pytest.fixture(autouse=True)
def two_ids(root: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RANGE_VARIABLE, "70001-70002")


def _taken(directory: Path) -> Lease:
    lease = user_ids.take(directory)
    assert lease is not None
    return lease


def test_no_two_machines_have_one(tmp_path: Path) -> None:
    first, second = _taken(tmp_path), _taken(tmp_path)
    assert (first.user, second.user) == (70001, 70002)
    with pytest.raises(ConflictError, match="all 2 user ids") as raised:
        user_ids.take(tmp_path)
    assert RANGE_VARIABLE in raised.value.hint
    os.close(first.descriptor)
    third = _taken(tmp_path)
    assert third.user == first.user
    for lease in (second, third):
        os.close(lease.descriptor)


def test_it_is_held_by_the_last_process_of_the_machine(tmp_path: Path) -> None:
    lease = _taken(tmp_path)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[lease.descriptor]) as machine:
        os.close(lease.descriptor)
        other = _taken(tmp_path)
        assert other.user != lease.user
        machine.communicate()
    again = _taken(tmp_path)
    assert again.user == lease.user
    for each in (other, again):
        os.close(each.descriptor)


def test_one_that_a_process_has_is_not_leased_again(tmp_path: Path) -> None:
    lease = _taken(tmp_path)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, user=lease.user) as attacker:
        # As a process does that gives its lock back.
        os.close(lease.descriptor)
        other = _taken(tmp_path)
        assert other.user != lease.user
        attacker.communicate()
    again = _taken(tmp_path)
    assert again.user == lease.user
    for each in (other, again):
        os.close(each.descriptor)


@pytest.mark.parametrize("text", ["", "5", "0-9", "9-8", "a-b", "1-4294967295", "-1-5"])
def test_a_range_that_is_not_valid_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv(RANGE_VARIABLE, text)
    with pytest.raises(InputError, match=RANGE_VARIABLE) as raised:
        user_ids.take(tmp_path)
    assert "1879048192-1879113727" in raised.value.hint
