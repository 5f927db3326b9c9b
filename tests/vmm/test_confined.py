"""A VMM behind its walls opens nothing: all that it imports later is loaded before."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cerne
from cerne.vmm.jail.bpf import Condition, Rule, program
from cerne.vmm.jail.calls import ALLOWED, CHECKED, DANGEROUS

_PACKAGE = Path(cerne.__file__).parent
_NUMBERS = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
# They are used before the walls are up: to open /dev/kvm, and to read what people write.
_EARLIER = {
    "cerne.kvm.hints",
    "fractions",
    "cerne.vmm.__main__",
    "cerne.vmm.fork_server",
    "cerne.vmm.jail.program",
}


def _imported_in_functions(tree: ast.AST) -> Iterator[str]:
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Import):
                    yield from (name.name for name in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module:
                    yield node.module


def test_it_imports_nothing_later_that_is_not_loaded() -> None:
    folders = ("vmm", "devices", "arch", "kvm")
    paths = [path for folder in folders for path in (_PACKAGE / folder).rglob("*.py")]
    later = {
        name
        for path in [*paths, *_PACKAGE.glob("*.py")]
        if path.name not in ("run.py", "__init__.py")
        for name in _imported_in_functions(ast.parse(path.read_text()))
    }
    words = (
        "import sys; sys.path.append(sys.argv[1]); import cerne.vmm.__main__; print(*sys.modules)"
    )
    command = [sys.executable, "-I", "-S", "-c", words, str(_PACKAGE.parent)]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert later - _EARLIER - {*loaded} == set()


def test_the_numbers_of_calls_are_the_kernels() -> None:
    if not _NUMBERS.exists():
        pytest.skip("the kernel's headers are not installed")
    found = re.findall(r"#define __NR_(\w+) (\d+)", _NUMBERS.read_text())
    numbers = {name: int(number) for name, number in found}
    listed = {**ALLOWED, **DANGEROUS, **{name: rule.number for name, rule in CHECKED.items()}}
    assert listed == {name: numbers.get(name) for name in listed}
    assert not {*ALLOWED, *CHECKED} & {*DANGEROUS}


def test_a_call_of_another_architecture_ends_the_process() -> None:
    rules = [Rule(1), Rule(2, conditions=(Condition(0, (3, 4), 0xFF), Condition(1, (5,))))]
    assert _answer(program(rules, 7), 1, (0, 0), architecture=0x4000_0003) == 0x8000_0000
    assert _answer(program(rules, 7), 0x4000_0001, (0, 0)) == 0x8000_0000


@pytest.mark.parametrize(
    ("number", "arguments", "answer"),
    [
        (1, (9, 9), 0x7FFF_0000),
        (2, (0x103, 5), 0x7FFF_0000),
        (2, (0x104, 5), 0x7FFF_0000),
        (2, (0x105, 5), 0x0005_0001),
        (2, (0x103, 6), 0x0005_0001),
        (3, (0, 0), 7),
    ],
)
def test_all_conditions_of_a_call_must_hold(
    number: int, arguments: tuple[int, int], answer: int
) -> None:
    rules = [Rule(1), Rule(2, conditions=(Condition(0, (3, 4), 0xFF), Condition(1, (5,))))]
    assert _answer(program(rules, 7), number, arguments) == answer


def _answer(
    code: bytes, number: int, arguments: tuple[int, int], architecture: int = 0xC000_003E
) -> int:
    """What a kernel's interpreter of the program returns."""
    data = {0: number, 4: architecture, 16: arguments[0], 24: arguments[1]}
    instructions = [
        (
            int.from_bytes(code[at : at + 2], "little"),
            code[at + 2],
            code[at + 3],
            int.from_bytes(code[at + 4 : at + 8], "little"),
        )
        for at in range(0, len(code), 8)
    ]
    accumulator, at = 0, 0
    while True:
        operation, if_true, if_false, value = instructions[at]
        at += 1
        if operation == 0x20:
            accumulator = data[value]
        elif operation == 0x54:
            accumulator &= value
        elif operation == 0x06:
            return value
        else:
            holds = accumulator == value if operation == 0x15 else accumulator >= value
            at += if_true if holds else if_false
