"""Raw addresses stay where they belong (docs: the layers of the package)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import cerne

_PACKAGE = Path(cerne.__file__).parent


def _imported(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_ctypes_is_used_by_kvm_and_the_jail_alone() -> None:
    users = {
        str(path.relative_to(_PACKAGE))
        for path in _PACKAGE.rglob("*.py")
        if any(name.partition(".")[0] == "ctypes" for name in _imported(path.read_text()))
    }
    assert {user for user in users if not user.startswith(("kvm/", "vmm/jail/"))} == set()
