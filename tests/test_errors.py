"""The family of errors: codes, statuses and texts."""

from __future__ import annotations

import ast
import errno
from pathlib import Path

import pytest

from cerne import errors
from cerne.errors import CerneError, KvmError


def descendants(kind: type[CerneError]) -> list[type[CerneError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in descendants(child))]


WHOLE_FAMILY = [kind for kind in descendants(CerneError) if kind.__module__ == errors.__name__]
FAMILY = [kind for kind in WHOLE_FAMILY if kind is not KvmError]


def test_every_error_is_drawn_in_the_diagram() -> None:
    assert errors.__doc__ is not None
    for kind in WHOLE_FAMILY:
        assert kind.__name__ in errors.__doc__


def test_codes_are_unique() -> None:
    codes = [kind.code for kind in WHOLE_FAMILY]
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize("kind", FAMILY)
def test_every_error_has_statuses(kind: type[CerneError]) -> None:
    assert 1 <= errors.exit_status(kind.__new__(kind)) <= 130
    assert 400 <= errors.http_status(kind.__new__(kind)) <= 599


def test_a_subclass_without_a_row_takes_its_parents_statuses() -> None:
    assert errors.exit_status(errors.BusyError("x")) == errors.exit_status(
        errors.ConflictError("x")
    )


def test_the_text_ends_in_the_remedy() -> None:
    assert str(CerneError("no QEMU", hint="install it")) == "no QEMU\ninstall it"


def test_a_kvm_error_keeps_the_operation_and_the_errno() -> None:
    error = KvmError("KVM_RUN", errno.EFAULT)
    assert error.operation == "KVM_RUN"
    assert error.errno == errno.EFAULT
    assert "Bad address" in error.message


def test_no_error_is_its_own_cause() -> None:
    """``raise error from error`` makes a cycle, and whoever prints causes follows it for ever."""
    for path in Path(errors.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and node.exc is not None and node.cause is not None:
                assert ast.dump(node.exc) != ast.dump(node.cause), f"{path}:{node.lineno}"
