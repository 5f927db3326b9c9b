"""The one family of errors of Cerne, and the table of its exit and HTTP statuses.

    CerneError
    ├── InputError           the input is wrong (a name, a size, a spec, an option)
    ├── NotFoundError        there is no machine, image or the like of that name
    ├── ConflictError        it conflicts with what exists (name in use, port in use)
    │   ├── BusyError        another operation holds the machine
    │   └── StateError       the machine's state does not allow it
    ├── CapacityError        this host cannot guarantee the requested resources
    ├── HostError            the host lacks something that is needed, or forbids it
    │   ├── MissingProgramError  a program is not installed
    │   └── KvmError         the kernel refused a KVM operation (keeps errno)
    ├── ImageError           an image or its source is not usable
    │   └── ChecksumError    content does not have the given digest
    ├── StorageError         the disk is full or not writable
    │   └── StreamError      standard input or output fails
    ├── EngineError          the virtual machine's process failed
    │   └── NotAnsweringError  it does not answer in time
    ├── GuestError           the guest failed or does not answer
    │   ├── CommandError     a command in the guest failed, and the caller checks for success
    │   ├── NotRunError      the guest has no such program, or may not run it
    │   ├── GuestPanicError  the guest's kernel panicked
    │   └── GuestTimeoutError  the guest was not ready, or did not answer, in time
    ├── OperationCancelledError  another command cancelled the operation
    └── DamagedError         saved state (store, snapshot) is damaged or of an unknown version

Each error says what is wrong (``message``), and which command or setting to use instead (``hint``).
Always raise with ``from`` the caught error.
"""

from __future__ import annotations

import os
from typing import Protocol, TypeVar

_Error = TypeVar("_Error", bound="CerneError")


class CerneError(Exception):
    """The root of all errors that Cerne raises on purpose.

    ``code`` is stable and meant for programs; ``message`` is one line for people; ``hint`` is the
    command or setting to use instead, or an empty string.
    """

    code = "error"

    def __init__(self, message: str, *, hint: str = "", machine: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.machine = machine

    def advise(self, line: str) -> None:
        """Add a line to the hint."""
        self.hint = f"{self.hint}\n{line}" if self.hint else line

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # Pickle would otherwise call the class with `args`, which not all classes take.
        return _restored, (type(self), self.args, self.__dict__)


SEE_OPTIONS = "see: cerne create --help"
"""The hint of a wrong value that says no better; a command puts its own help in its place."""


class InputError(CerneError):
    """The input is wrong; nothing was created.

    ``field`` is the field's name with which the message begins, or an empty string.
    """

    code = "invalid-input"

    def __init__(
        self, message: str, *, hint: str = "", machine: str | None = None, field: str = ""
    ) -> None:
        super().__init__(message, hint=hint, machine=machine)
        self.field = field


class NotFoundError(CerneError):
    """Nothing has that name."""

    code = "not-found"


class ConflictError(CerneError):
    """The request conflicts with what exists."""

    code = "conflict"


class BusyError(ConflictError):
    """Another operation holds the machine."""

    code = "busy"


class StateError(ConflictError):
    """The machine's state does not allow the request."""

    code = "wrong-state"


class CapacityError(CerneError):
    """This host cannot guarantee the requested resources."""

    code = "no-capacity"


class HostError(CerneError):
    """The host lacks something that is needed, or forbids it to this user."""

    code = "host"


class MissingProgramError(HostError):
    """A program that is needed is not installed."""

    code = "missing-program"


class KvmError(HostError):
    """The kernel refused a KVM operation.

    ``operation`` is the ioctl's name and ``errno`` the kernel's answer.
    """

    code = "kvm"

    def __init__(
        self, operation: str, errno: int, *, message: str | None = None, hint: str = ""
    ) -> None:
        super().__init__(message or f"{operation} failed: {os.strerror(errno)}", hint=hint)
        self.operation = operation
        self.errno = errno


class ImageError(CerneError):
    """An image or its source is not usable."""

    code = "image"


class ChecksumError(ImageError):
    """Content does not have the given digest."""

    code = "checksum"


class StorageError(CerneError):
    """The disk is full, or not writable."""

    code = "storage"


class StreamError(StorageError):
    """Standard input, output or error of a command fails."""

    code = "stream"


class EngineError(CerneError):
    """The virtual machine's process failed, or refused a request."""

    code = "engine"


class NotAnsweringError(EngineError):
    """The virtual machine's process does not answer in time: it may hang."""

    code = "not-answering"


class GuestError(CerneError):
    """The guest failed, or does not answer."""

    code = "guest"


class CommandResult(Protocol):
    """How a command ended, and its output."""

    @property
    def status(self) -> int:
        """Its exit status, or 128 plus the signal's number."""

    @property
    def signal(self) -> int | None:
        """The signal that ended it, if one did."""

    @property
    def stdout(self) -> bytes | str:
        """Its standard output."""

    @property
    def stderr(self) -> bytes | str:
        """Its standard error."""


class NotRunError(GuestError):
    """The guest did not run a command: it has no such program, or the user may not execute it.

    ``missing`` is true if there is no such program.
    """

    code = "not-run"

    def __init__(
        self, message: str, *, hint: str = "", machine: str | None = None, missing: bool = False
    ) -> None:
        super().__init__(message, hint=hint, machine=machine)
        self.missing = missing


class CommandError(GuestError):
    """A command in the guest failed, and ``check=True`` was given.

    ``result`` is how it ended, and its output.
    """

    code = "command"

    def __init__(self, message: str, *, result: CommandResult) -> None:
        super().__init__(message)
        self.result = result


class GuestPanicError(GuestError):
    """The guest's kernel panicked."""

    code = "guest-panic"


class GuestTimeoutError(GuestError):
    """The guest did not become ready, or did not answer, in time."""

    code = "guest-timeout"


class OperationCancelledError(CerneError):
    """Another command cancelled the operation; nothing of it is left."""

    code = "cancelled"


class DamagedError(CerneError):
    """Saved state is damaged, or has a version that this Cerne does not know."""

    code = "damaged"


def _restored(
    kind: type[_Error], args: tuple[object, ...], attributes: dict[str, object]
) -> _Error:
    """An error of another process, or of another time (pickle)."""
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error


# The first class of an error's MRO that is listed here decides: (exit status, HTTP status).
_STATUSES: dict[type[CerneError], tuple[int, int]] = {
    CerneError: (1, 500),
    InputError: (2, 422),
    NotFoundError: (3, 404),
    ConflictError: (4, 409),
    CapacityError: (5, 507),
    HostError: (6, 503),
    ImageError: (7, 422),
    GuestError: (8, 502),
    EngineError: (9, 500),
    DamagedError: (10, 500),
    StorageError: (11, 507),
    GuestTimeoutError: (12, 504),
    OperationCancelledError: (13, 409),
}


def exit_status(error: CerneError) -> int:
    """The exit status of a ``cerne`` command that ends in this error."""
    return _statuses(error)[0]


def http_status(error: CerneError) -> int:
    """The HTTP status of a request that ends in this error."""
    return _statuses(error)[1]


def _statuses(error: CerneError) -> tuple[int, int]:
    return next(_STATUSES[kind] for kind in type(error).__mro__ if kind in _STATUSES)
