"""Names that are made up."""

from __future__ import annotations

from cerne.manager.names import made_up_name
from cerne.spec.names import check_name


def test_made_up_names_are_allowed() -> None:
    assert check_name(made_up_name())
