"""What `cerne.run` and `cerne.run_async` return: the machine exists only in a ``with`` block."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import TYPE_CHECKING, NoReturn, TypeVar

from cerne.errors import InputError

if TYPE_CHECKING:
    from types import TracebackType

M_co = TypeVar("M_co", covariant=True)


class NotEnteredError(InputError, AttributeError):
    """A machine's method was asked of the call itself, without a ``with`` block."""


class Block(AbstractContextManager[M_co, None]):
    """A context manager that names the ``with`` block if it is used without one."""

    def __init__(self, context: AbstractContextManager[M_co, bool | None]) -> None:
        self._context = context

    def __enter__(self) -> M_co:
        """Start the machine, and return it."""
        return self._context.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove the machine."""
        self._context.__exit__(kind, error, traceback)

    def __getattr__(self, name: str) -> NoReturn:
        """Refuse what only the machine has."""
        raise _not_entered(name, "with cerne.run(…)")


class AsyncBlock(AbstractAsyncContextManager[M_co, None]):
    """`Block` for asyncio."""

    def __init__(self, context: AbstractAsyncContextManager[M_co, bool | None]) -> None:
        self._context = context

    async def __aenter__(self) -> M_co:
        """Start the machine, and return it."""
        return await self._context.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove the machine."""
        await self._context.__aexit__(kind, error, traceback)

    def __getattr__(self, name: str) -> NoReturn:
        """Refuse what only the machine has."""
        raise _not_entered(name, "async with cerne.run_async(…)")


def _not_entered(name: str, call: str) -> NotEnteredError:
    return NotEnteredError(
        f"there is no machine yet, and so no {name}: it starts where its block begins",
        hint=f"write it as a block: {call} as vm: … vm.{name} …",
    )
