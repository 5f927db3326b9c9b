"""What a network's holder asks of its host."""

from __future__ import annotations

from pathlib import Path

import pytest

from cerne.errors import HostError
from cerne.host.programs import find_program
from cerne.network.holder import services
from cerne.network.holder.services import require_name_sets


@pytest.fixture(autouse=True)
def _asked_again() -> None:
    require_name_sets.cache_clear()


def test_an_old_dnsmasq_is_not_given_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "dnsmasq"
    old.write_text('#!/bin/sh\ncase "$*" in *nftset*) exit 1;; esac\n')
    old.chmod(0o755)
    monkeypatch.setattr(services, "require_program", lambda _name: old)
    with pytest.raises(HostError, match="does not know nftset"):
        require_name_sets()


def test_the_dnsmasq_of_this_host_is_asked() -> None:
    if find_program("dnsmasq") is None:
        pytest.skip("dnsmasq is not installed here")
    require_name_sets()
