"""No two modules of the package need each other, not even for types."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import cerne

_ROOT = Path(cerne.__file__).parents[1]


def _modules() -> dict[str, Path]:
    found = {}
    for path in (_ROOT / "cerne").rglob("*.py"):
        name = ".".join(path.relative_to(_ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def _imported(path: Path, modules: dict[str, Path]) -> set[str]:
    """The modules of the package that a file imports, wherever in it that is."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            named = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (named & modules.keys()) or {node.module}
    return found & modules.keys()


def test_modules_import_each_other_in_one_direction() -> None:
    modules = _modules()
    graph = {name: _imported(path, modules) - {name} for name, path in modules.items()}
    TopologicalSorter(graph).prepare()


def test_qemu_is_started_without_our_own_vmm() -> None:
    module = "cerne.engine.qemu.confinement"
    code = f"import sys, cerne.engine.qemu.launching, {module}; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert module in loaded
    assert "cerne.devices.virtio.device" not in loaded
    assert "cerne.vmm.machine" not in loaded


def test_the_command_line_looks_for_no_plugins_of_pydantic() -> None:
    prepare = "from cerne.cli.plugins import leave_out_plugins; leave_out_plugins()"
    code = f"""{prepare}
import sys, cerne.spec.machine
assert cerne.spec.machine.MachineSpec(image="tiny", name="a").name == "a"
print(*sys.modules)
from pydantic.plugin._loader import PYDANTIC_ENTRY_POINT_GROUP
"""
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "pydantic" in loaded
    assert "importlib.metadata" not in loaded


def test_the_program_that_confines_others_imports_little() -> None:
    code = "import sys, cerne.vmm.start, cerne.vmm.jail.program; print(*sys.modules)"
    environment = {"PYTHONPATH": str(_ROOT)}
    command = [sys.executable, "-S", "-c", code]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert not {"enum", "typing", "socket", "pathlib", "json"} & {*loaded.stdout.split()}


def test_a_vmm_loads_nothing_that_its_start_would_wait_for() -> None:
    """Each of them takes longer than most devices: one dataclass loads all of these."""
    code = f"import sys; sys.path.append({str(_ROOT)!r}); import cerne.vmm.__main__"
    command = [sys.executable, "-I", "-S", "-c", f"{code}; print(*sys.modules)"]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "cerne.vmm.machine" in loaded
    slow = {"dataclasses", "inspect", "ast", "pathlib", "logging", "subprocess", "asyncio"}
    assert not slow & set(loaded)
