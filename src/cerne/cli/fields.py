"""The options of commands, which are made late: only for the command that is asked for.

To make the options of all commands takes 40 ms, and the models of a specification, of which the
options for the fields of a machine are made, take as long to load as all the rest of a command.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperCommand

from cerne.cli.failure import begins
from cerne.cli.options import number
from cerne.errors import InputError

if TYPE_CHECKING:
    from typer._click.core import Context
    from typer._click.formatting import HelpFormatter

    from cerne.spec.flag import Flag, Use
    from cerne.spec.machine import MachineSpec

_KINDS: Mapping[str, object] = {
    "number": int | None,
    "size": str | None,
    "text": str | None,
    "list": list[str] | None,
}


_METAVARS: Mapping[str, str] = {"number": "NUMBER", "size": "SIZE", "text": "TEXT", "list": "TEXT"}
"""What stands for values, if nothing says it better."""


class FieldOptions:
    """A command's function whose ``**asked`` are the options for the fields of a machine.

    They come before its keyword-only parameters. Those that are not given are not among ``asked``.
    """

    def __init__(self, function: Callable[..., None], use: Use) -> None:
        """Take a function, and the use that it makes of fields."""
        self.__name__ = function.__name__
        self.__doc__ = function.__doc__
        self.__annotations__: dict[str, object] = {}
        self.__signature__ = inspect.Signature()
        self._function = function
        self._use = use
        self._words: frozenset[str] = frozenset()

    def __call__(self, **options: object) -> None:
        """Run the command with the options that were given."""
        own = {name: value for name, value in options.items() if name not in self._words}
        asked = {name: options[name] for name in self._words if options.get(name) is not None}
        self._function(**own, **asked)

    def add(self) -> None:
        """Add the options."""
        from cerne.spec.machine import flags

        known = {word: flag for word, flag in flags().items() if self._use in flag.uses}
        own = [*_without_asked(self._function).parameters.values()]
        last = [parameter for parameter in own if parameter.kind is parameter.KEYWORD_ONLY]
        first = [parameter for parameter in own if parameter not in last]
        options = [_parameter(word, flag, self._use) for word, flag in known.items()]
        self.__signature__ = inspect.Signature([*first, *options, *last])
        self._words = frozenset(known)


class _Late:
    """A command's function without its options, until they are made."""

    def __init__(self, function: Callable[..., object]) -> None:
        self.__name__ = getattr(function, "__name__", "")
        self.__doc__ = function.__doc__
        self.__annotations__: dict[str, object] = {}
        self.__signature__ = inspect.Signature()
        self.function = function

    def __call__(self) -> None:
        raise AssertionError("a command is called before its options are made")


class LateCommand(TyperCommand):
    """A command whose options are made when it is asked for (see `make_late`)."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: Context | None = None,
        **extra: object,
    ) -> Context:
        """Make the options before the words are read, or help or completions are asked for."""
        late = inspect.unwrap(self.callback) if self.callback else None
        if isinstance(late, _Late):
            if isinstance(late.function, FieldOptions):
                late.function.add()
            whole = typer.Typer(add_completion=False)
            whole.command()(late.function)
            made = typer.main.get_command(whole)
            self.params, self.callback = made.params, made.callback
        context = super().make_context(info_name, args, parent, **extra)
        begins(context.command_path)
        return context

    def format_epilog(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Write the examples of the command."""
        from cerne.cli.examples import example_lines

        lines = example_lines(ctx.command_path.partition(" ")[2])
        if lines:
            with formatter.section("Examples"):
                formatter.write("".join(f"  {line}\n" for line in lines))


def make_late(commands: typer.Typer) -> None:
    """Have the options of these commands made when a command is asked for."""
    for command in commands.registered_commands:
        if command.callback is not None:
            command.callback = _Late(command.callback)
            if command.cls is None or command.cls is TyperCommand:
                command.cls = LateCommand


def field_options(use: Use) -> Callable[[Callable[..., None]], FieldOptions]:
    """Decorates the function of a command (see `FieldOptions`)."""
    return lambda function: FieldOptions(function, use)


def make_spec(image: str, name: str, asked: Mapping[str, object]) -> MachineSpec:
    """The specification that the options of a command make.

    Raises:
        InputError: an option has a wrong value.
    """
    from cerne.spec.machine import machine_spec

    with options_named(asked):
        return machine_spec(image=image, name=name, **asked)


@contextlib.contextmanager
def options_named(asked: Mapping[str, object]) -> Iterator[None]:
    """Have an error about the text of an option begin with the option.

    Raises:
        InputError: the block raised one.
    """
    try:
        yield
    except InputError as error:
        texts = {
            repr(text): word
            for word, value in asked.items()
            for text in (value if isinstance(value, list) else [value])
        }
        said = next((text for text in texts if error.message.startswith(f"{text} ")), None)
        if said is None:
            raise
        word = texts[said]
        raise InputError(
            f"{word} {error.message}", hint=error.hint, machine=error.machine, field=word
        ) from error


def _without_asked(function: Callable[..., None]) -> inspect.Signature:
    signature = inspect.signature(function, eval_str=True)
    parameters = signature.parameters.values()
    return signature.replace(
        parameters=[each for each in parameters if each.kind is not each.VAR_KEYWORD]
    )


def _parameter(word: str, flag: Flag, use: Use) -> inspect.Parameter:
    metavar = flag.metavar or _METAVARS[flag.kind]
    option = typer.Option(
        *(flag.names or (f"--{word.replace('_', '-')}",)),
        help=flag.help,
        metavar=f"{metavar}|none" if use == "set" and flag.removable else metavar,
        # A value that is not given stays as it is.
        show_default=use != "set" and (flag.default or True),
        parser=number if flag.kind == "number" else None,
    )
    return inspect.Parameter(
        word,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[_KINDS[flag.kind], option],
    )
