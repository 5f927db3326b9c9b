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
