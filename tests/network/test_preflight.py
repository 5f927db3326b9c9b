"""What is missing for networks is named, with the command that helps."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from cerne.network import preflight
from cerne.network.holder import namespace
from cerne.network.preflight import Lack, lacks
from cerne.spec.network import Uplink


@pytest.fixture(autouse=True)
def _whole_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device = tmp_path / "tun"
    device.touch()
    monkeypatch.setattr(preflight, "TUN_DEVICE", device)
    monkeypatch.setattr(preflight, "find_program", Path)
    monkeypatch.setattr(preflight, "_tried", list[Lack])
    monkeypatch.setattr("os.geteuid", lambda: 0)


def test_a_whole_host_lacks_nothing() -> None:
    assert not any(lacks(uplink) for uplink in Uplink)


@pytest.mark.parametrize(
    ("name", "package"),
    [("nft", "nftables"), ("dnsmasq", "dnsmasq-base"), ("pasta", "passt")],
)
def test_a_missing_program_is_named(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "find_program", lambda each: None if each == name else Path())
    (lack,) = lacks(Uplink.USER)
    assert lack.message == f"{name} is not installed"
    assert package in lack.hint


def test_a_missing_device_and_missing_rights_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert [lack.message for lack in lacks(Uplink.NAT)] == ["the uplink nat needs root"]
    monkeypatch.setattr(preflight, "TUN_DEVICE", tmp_path / "no-tun")
    (lack,) = lacks(Uplink.USER)
    assert (lack.message, lack.hint) == (f"there is no {tmp_path}/no-tun", "sudo modprobe tun")


def test_a_host_without_user_namespaces_is_named() -> None:
    hint = namespace._allowing(OSError(errno.ENOSPC, "No space left on device"))
    assert hint.startswith("sudo sysctl") or hint == "run cerne as root"
