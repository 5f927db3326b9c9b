"""Plain words: help texts and errors keep to the table "write, not" of CONTRIBUTING.md, "Words"."""

from __future__ import annotations

import ast
import functools
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import typer

from cerne import errors
from cerne.cli.app import app
from cerne.units import counted

_ROOT = Path(__file__).parents[1]
_SOURCE = _ROOT / "src" / "cerne"
_ROW = re.compile(r"\| (?P<write>[^|]+) \| (?P<words>[^|]+) \|")
_HOLE = "…"
_BEGINNING = "^"


@dataclass(frozen=True)
class Text:
    """A text that users read, and its place."""

    place: str
    words: str


def _not_table() -> dict[str, str]:
    """The refused words and forms, each with the words to write, from CONTRIBUTING.md."""
    page = (_ROOT / "CONTRIBUTING.md").read_text()
    lines = page[page.index("| write | not |") :].splitlines()[2:]
    found: dict[str, str] = {}
    for line in lines:
        row = _ROW.fullmatch(line)
        if row is None:
            break
        for word in row["words"].split(", "):
            found[word] = row["write"]
    return found


_NOT = _not_table()


def _pattern(form: str) -> re.Pattern[str]:
    """A form of the table: words, with `^` for the beginning of a text.

    "There is no" is plain, and so is a name with one of the words in it: `--keeper`, `x-life`.
    """
    body = re.escape(form.removeprefix(_BEGINNING))
    start = r"\A" if form.startswith(_BEGINNING) else r"(?<!there )(?<![\w-])"
    return re.compile(f"{start}{body}(?![\\w-])", re.IGNORECASE)


_PATTERNS = {form: _pattern(form) for form in _NOT}


def _wrong(text: Text) -> list[str]:
    return [
        f"{text.place}: {text.words!r} has {form!r}: write {_NOT[form]}"
        for form, pattern in _PATTERNS.items()
        if pattern.search(text.words)
    ]


def _helps() -> Iterator[Text]:
    tree = typer.main.get_command(app)
    for name, command in tree.commands.items():  # type: ignore[attr-defined]
        for more, leaf in {"": command, **getattr(command, "commands", {})}.items():
            place = f"cerne {name} {more}".rstrip()
            yield Text(place, leaf.help or "")
            # A command has options once it is asked for.
            leaf.make_context(more or name, [], resilient_parsing=True)
            for parameter in leaf.params:
                yield Text(f"{place} {parameter.name}", getattr(parameter, "help", None) or "")
    yield Text("cerne", f"{tree.help} {tree.epilog}")


_ERRORS = {
    name
    for name, kind in vars(errors).items()
    if inspect.isclass(kind) and issubclass(kind, errors.CerneError)
}


def _constants(value: ast.expr) -> str:
    """The constant parts of a text, with a hole for each value in it."""
    match value:
        case ast.Constant(str() as words):
            return words
        case ast.JoinedStr(parts):
            return "".join(_constants(part) for part in parts)
        case ast.BinOp(left, ast.Add(), right):
            return _constants(left) + _constants(right)
        case ast.IfExp(_, one, other):
            return f"{_constants(one)}\n{_constants(other)}"
    return _HOLE


def _kinds(tree: ast.AST) -> set[str]:
    """The names of errors in a module: those of `cerne.errors`, and its own subclasses."""
    own = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and any(isinstance(base, ast.Name) and base.id in _ERRORS for base in node.bases)
    }
    return _ERRORS | own


@functools.cache
def _trees() -> Mapping[Path, ast.AST]:
    """The modules of the package."""
    return {path: ast.parse(path.read_text()) for path in sorted(_SOURCE.rglob("*.py"))}


def _errors() -> Iterator[Text]:
    for path, tree in _trees().items():
        kinds = _kinds(tree)
        for call in ast.walk(tree):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
                continue
            if call.func.id not in kinds:
                continue
            named = {word.arg: word.value for word in call.keywords}
            said = [*call.args, *(named[key] for key in ("message", "hint") if key in named)]
            for value in said:
                place = f"{path.relative_to(_ROOT)}:{value.lineno}"
                yield Text(place, _constants(value))


def test_help_texts_are_in_plain_words() -> None:
    texts = list(_helps())
    assert len(texts) > 100
    assert [wrong for text in texts for wrong in _wrong(text)] == []


def test_errors_are_in_plain_words() -> None:
    texts = list(_errors())
    assert len(texts) > 300
    assert [wrong for text in texts for wrong in _wrong(text)] == []


def _nouns() -> set[str]:
    """The nouns that any module counts by `cerne.units.counted`."""
    found = set()
    for call in (node for tree in _trees().values() for node in ast.walk(tree)):
        match call:
            case ast.Call(ast.Name(counted.__name__), [_, ast.Constant(str() as noun)]):
                found.add(noun)
    return found


def _is_constant(value: ast.expr) -> bool:
    return isinstance(value, ast.Name) and value.id.isupper()


def test_a_number_of_things_may_be_one() -> None:
    nouns = _nouns()
    assert {"CPU", "byte", "hugepage"} <= nouns
    plurals = "|".join(counted(2, noun).removeprefix("2 ") for noun in nouns)
    after = re.compile(rf" (?:{plurals})\b")
    wrong = [
        f"{path.relative_to(_ROOT)}:{hole.lineno}: {{…}}{rest.value!r}: write counted(…)"
        for path, tree in _trees().items()
        for text in ast.walk(tree)
        if isinstance(text, ast.JoinedStr)
        for hole, rest in pairwise(text.values)
        if isinstance(hole, ast.FormattedValue)
        and not _is_constant(hole.value)
        and isinstance(rest, ast.Constant)
        and after.match(str(rest.value))
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("form", "words", "found"),
    [
        ("whoever", "whoever asks", True),
        ("is no", "x is no disk", True),
        ("is no", "x is not a disk", False),
        ("is no", "x is nobody's", False),
        ("is no", "there is no disk", False),
        ("^should", "should it end", True),
        ("^should", "it should end", False),
    ],
)
def test_the_forms_of_the_table(form: str, words: str, found: bool) -> None:
    assert (_pattern(form).search(words) is not None) is found


def test_the_table_is_there() -> None:
    assert {"whoever", "cannot be", "anew", "is no"} <= _NOT.keys()
    assert all(_NOT.values())
