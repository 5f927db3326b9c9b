"""Whether a user without root may build what belongs to several users."""

from __future__ import annotations

from pathlib import Path

import pytest

from cerne.errors import HostError, MissingProgramError
from cerne.host import own_ids
from cerne.host.own_ids import as_root, has_own_ids, require_own_ids
from cerne.host.report import own_ids_findings


@pytest.fixture
def user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """We are the ordinary user 4242, and these are the files that give it ids."""
    files = (tmp_path / "subuid", tmp_path / "subgid")
    monkeypatch.setattr("os.geteuid", lambda: 4242)
    monkeypatch.setattr(own_ids, "_FILES", files)
    monkeypatch.setattr(own_ids, "find_program", lambda name: Path("/usr/bin") / name)
    return tmp_path


def test_root_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    require_own_ids("an image")
    assert as_root() == []
    assert list(own_ids_findings()) == []


def test_a_program_that_is_missing_is_named(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_ids, "find_program", lambda name: None)
    with pytest.raises(MissingProgramError, match="newuidmap") as refused:
        require_own_ids("an image")
    assert "install" in refused.value.hint
    (finding,) = own_ids_findings()
    assert (finding.good, finding.advice) == (False, refused.value.hint)


def test_a_user_without_ids_is_told_how_to_have_some(user: Path) -> None:
    (user / "subuid").write_text("4242:100000:65536\n")
    (user / "subgid").write_text("other:100000:65536\n")
    with pytest.raises(HostError, match=r"4242 has no line in .*subgid") as refused:
        require_own_ids("an image")
    assert "usermod --add-subuids" in refused.value.hint
    assert not has_own_ids()
    (user / "subgid").write_text("4242:100000:65536\n")
    require_own_ids("an image")
    assert has_own_ids()
    (finding,) = own_ids_findings()
    assert finding.good
    assert as_root()[0] == "unshare"
