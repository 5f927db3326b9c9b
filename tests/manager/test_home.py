"""Where everything lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cerne.errors import HostError, InputError, StorageError
from cerne.manager import home as home_module
from cerne.manager.home import Home


def test_cerne_home_moves_data_and_runtime(home: Path) -> None:
    found = Home.of_this_user()
    assert found.store.is_relative_to(home)
    assert found.machines_runtime.is_relative_to(home)
    assert found.machines.is_dir()
    assert found.machines.stat().st_mode & 0o077 == 0


def test_without_it_the_desktop_conventions_hold(
    monkeypatch: pytest.MonkeyPatch, short_path: Path
) -> None:
    monkeypatch.delenv("CERNE_HOME", raising=False)
    monkeypatch.delenv("CERNE_CACHE", raising=False)
    # Root has directories of its own, which a test leaves alone.
    monkeypatch.setattr(home_module, "_is_root", lambda: False)
    monkeypatch.setenv("XDG_DATA_HOME", str(short_path / "data"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_path / "run"))
    found = Home.of_this_user()
    assert found.data == short_path / "data" / "cerne"
    assert found.runtime == short_path / "run" / "cerne"


def test_a_path_too_long_for_sockets_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CERNE_HOME", str(tmp_path / ("x" * 100)))
    with pytest.raises(InputError) as caught:
        Home.of_this_user()
    assert "CERNE_HOME" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_made_is_named(
    monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    (home / "file").write_text("")
    monkeypatch.setenv("CERNE_HOME", str(home / "file" / "home"))
    with pytest.raises((HostError, StorageError)) as caught:
        Home.of_this_user()
    assert "CERNE_HOME" in caught.value.hint


@pytest.mark.parametrize("inner", ["", "machines", "run"])
def test_a_directory_that_everybody_may_write_to_is_refused(home: Path, inner: str) -> None:
    Home.of_this_user()
    (home / inner).chmod(0o777)
    with pytest.raises(HostError, match="all users may write") as caught:
        Home.of_this_user()
    assert "chmod o-w" in caught.value.hint


def test_a_home_of_another_user_is_refused(home: Path, root: None) -> None:
    os.chown(home, 65534, 65534)
    with pytest.raises(HostError, match="belongs to another user"):
        Home.of_this_user()


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch, short_path: Path) -> Path:
    """A directory like /tmp, of a user without a runtime directory."""
    for name in ("CERNE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(home_module, "_is_root", lambda: False)
    monkeypatch.setenv("XDG_DATA_HOME", str(short_path / "data"))
    found = short_path / "tmp"
    found.mkdir()
    found.chmod(0o1777)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(found))
    return found


def _mine(shared: Path) -> Path:
    return shared / f"cerne-{os.geteuid()}"


def test_without_a_runtime_directory_a_private_one_is_made(shared: Path) -> None:
    assert Home.of_this_user().runtime == _mine(shared)
    assert Home.of_this_user().locks.stat().st_mode & 0o777 == 0o700
    assert _mine(shared).stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("inner", ["", "m", "locks", "waiters"])
def test_a_directory_that_others_may_change_is_no_runtime_directory(
    shared: Path, inner: str
) -> None:
    Home.of_this_user()
    (_mine(shared) / inner).chmod(0o777)
    with pytest.raises(HostError, match="only you may change"):
        Home.of_this_user()


@pytest.mark.parametrize("inner", ["", "m", "locks", "waiters"])
def test_a_symbolic_link_is_no_runtime_directory(shared: Path, inner: str) -> None:
    elsewhere = shared.with_name("elsewhere")
    elsewhere.mkdir(mode=0o700)
    link = _mine(shared) / inner
    if inner:
        _mine(shared).mkdir(mode=0o700)
    link.symlink_to(elsewhere)
    with pytest.raises(HostError, match="only you may change"):
        Home.of_this_user()
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("inner", ["", "m"])
def test_a_directory_of_another_user_is_no_runtime_directory(
    shared: Path, inner: str, root: None
) -> None:
    (_mine(shared) / inner).mkdir(mode=0o700, parents=True)
    os.chown(_mine(shared) / inner, 65534, 65534)
    with pytest.raises(HostError, match="only you may change"):
        Home.of_this_user()


def test_a_shared_directory_in_which_others_may_rename_is_refused(shared: Path) -> None:
    shared.chmod(0o777)
    with pytest.raises(HostError, match="only you may change"):
        Home.of_this_user()
    assert list(shared.iterdir()) == []
