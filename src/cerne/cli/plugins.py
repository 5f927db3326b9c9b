"""Keeps pydantic from looking for plugins of it in all installed packages.

Cerne has none, and `importlib.metadata` with its search is a sixth of the start of each command. A
program that uses `cerne` as a library has its plugins.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType

_LOADER = "pydantic.plugin._loader"


class _NoPlugins(ModuleType):
    """Stands for pydantic's loader of plugins, and gives all else of it from the real one."""

    @staticmethod
    def get_plugins() -> tuple[()]:
        """No plugins."""
        return ()

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        sys.modules.pop(_LOADER, None)
        return getattr(import_module(_LOADER), name)


def leave_out_plugins() -> None:
    """Do so in this process; to be called before pydantic is imported."""
    sys.modules[_LOADER] = _NoPlugins(_LOADER)
