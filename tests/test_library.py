"""What ``import cerne`` offers."""

from __future__ import annotations

import pickle
import pkgutil
import subprocess
import sys
from importlib import import_module

import pytest

import cerne
from cerne import errors
from cerne.engine.qmp.session import QmpCommandError
from cerne.errors import CerneError, CommandError, KvmError
from cerne.guest import ExecResult


def test_all_that_there_is_can_be_seen() -> None:
    assert dir(cerne) == sorted(cerne.__all__)
    for name in cerne.__all__:
        assert getattr(cerne, name) is not None


def test_every_error_is_offered() -> None:
    found = {name for name, value in vars(errors).items() if _is_error(value)}
    assert found <= set(cerne.__all__)


def _is_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, CerneError)


def _whole_family() -> list[type[CerneError]]:
    """All errors of the package, those of single modules too."""
    for module in pkgutil.walk_packages(cerne.__path__, "cerne."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    found = [CerneError]
    for kind in found:
        found += [each for each in kind.__subclasses__() if each not in found]
    return [kind for kind in found if kind.__module__.startswith("cerne.")]


def _made(kind: type[CerneError]) -> CerneError:
    if issubclass(kind, KvmError):
        return kind("KVM_RUN", 22, hint="h")
    if issubclass(kind, CommandError):
        return kind("m", result=ExecResult(3, None, b"out", b"err"))
    if issubclass(kind, QmpCommandError):
        return QmpCommandError("migrate", "GenericError", "no")
    return kind("m", hint="h", machine="web")


@pytest.mark.parametrize("kind", _whole_family(), ids=lambda kind: kind.__name__)
def test_errors_go_to_other_processes(kind: type[CerneError]) -> None:
    error = _made(kind)
    error.advise("and more")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert type(copy) is kind
    assert (str(copy), vars(copy), copy.args) == (str(error), vars(error), error.args)
    assert errors.exit_status(copy) == errors.exit_status(error)


def test_it_can_be_run_as_a_module() -> None:
    words = [sys.executable, "-m", "cerne", "--version"]
    assert subprocess.run(words, capture_output=True, check=True).stdout.startswith(b"cerne ")


def test_a_machine_without_its_block_says_how_to_write_one() -> None:
    made = cerne.run("tiny")
    with pytest.raises(cerne.InputError, match=r"as vm: … vm\.exec …"):
        _ = made.exec
    with pytest.raises(cerne.InputError, match=r"async with cerne\.run_async"):
        _ = cerne.run_async("tiny").exec
    assert not hasattr(made, "stop")
