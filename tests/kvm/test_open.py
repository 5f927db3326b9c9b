"""What is said where /dev/kvm cannot be opened, and the command that mends it."""

from __future__ import annotations

import getpass
import grp
import os
from pathlib import Path

import pytest

from cerne.errors import KvmError
from cerne.kvm.hints import missing_hint, permission_hint
from cerne.kvm.kvm import Kvm


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A device that is there, for a user named ada."""
    device = tmp_path / "kvm"
    device.touch(mode=0o660)
    device.chmod(0o660)
    monkeypatch.setattr(getpass, "getuser", lambda: "ada")
    return device


@pytest.mark.parametrize(
    ("flags", "command"),
    [
        ("fpu svm", "sudo modprobe kvm_amd"),
        ("fpu vmx", "sudo modprobe kvm_intel"),
        ("fpu", "nested virtualization"),
    ],
)
def test_a_missing_device_names_the_module_or_the_setting(
    monkeypatch: pytest.MonkeyPatch, flags: str, command: str
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda path: f"flags : {flags}\n")
    assert command in missing_hint()


def test_a_device_of_a_group_asks_to_join_it(
    device: Path, monkeypatch: pytest.MonkeyPatch, root: None
) -> None:
    os.chown(device, 0, 107)
    entry = grp.struct_group(("kvm", "x", 107, []))
    monkeypatch.setattr(grp, "getgrgid", lambda number: entry)
    assert permission_hint(device).startswith("sudo usermod -aG kvm ada")


def test_a_device_that_no_group_opens_is_opened_to_the_user(device: Path) -> None:
    device.chmod(0o600)
    assert permission_hint(device) == f"sudo setfacl -m u:ada:rw {device}"


def test_a_user_without_a_name_is_known_by_number(
    device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nameless() -> str:
        raise KeyError(os.getuid())

    monkeypatch.setattr(getpass, "getuser", nameless)
    device.chmod(0o600)
    assert f"u:{os.getuid()}:rw" in permission_hint(device)


def test_a_closed_device_keeps_errno_and_says_what_to_do(
    device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(KvmError, match="not open to this user") as caught:
        Kvm(device)
    assert caught.value.errno == 13
    assert "ada" in caught.value.hint
