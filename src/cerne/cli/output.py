"""What commands print: tables for people, JSON for programs, and progress.

Tables are written by code of our own: the import of rich alone takes a fifth of the time that
``cerne ls`` may take. Colours and progress appear on a terminal only, and no colours if NO_COLOR is
set (https://no-color.org).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from cerne.client import Machine, Progress


_CONTROL = ("Cc", "Cf", "Cs")
"""Categories of Unicode: control characters, formats such as bidirectional ones, surrogates."""


_NARROWEST = 20
"""Columns that a text has on the narrowest terminal."""
_LEAST_CELL = 8
"""A cell that is shortened keeps so many characters."""


def print_json(value: object) -> None:
    """Print a value of plain types as JSON."""
    print(json_text(value, indent=2))


def json_text(value: object, indent: int | None = None) -> str:
    """A value as JSON; what could control a terminal is escaped, which means the same in JSON."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return "\n".join(_escaped(line) for line in text.split("\n"))


def _escaped(line: str) -> str:
    if line.isprintable():
        return line
    return "".join(
        _as_json(character) if unicodedata.category(character) in _CONTROL else character
        for character in line
    )


def _as_json(character: str) -> str:
    """A character as JSON escapes it: its units of UTF-16 (RFC 8259, section 7)."""
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def print_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    colours: Mapping[str, str] | None = None,
    shortened: Sequence[str] = (),
) -> None:
    """Print rows under headings, each column as wide as its widest cell.

    `colours` maps a cell's text to the name of its colour. If a terminal has too few columns for
    all, the cells of those that are `shortened` end with an ellipsis, of the first ones first.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        for heading in shortened:
            _shorten(headings, cells, headings.index(heading))
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    print(paint(_line(headings, widths), "bold"))
    for row in cells:
        print(_line(row, widths, colours or {}))


def _shorten(headings: Sequence[str], cells: list[list[str]], place: int) -> None:
    """Shorten the cells of a column as far as the table is wider than the terminal."""
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    over = sum(widths) + 2 * (len(widths) - 1) - shutil.get_terminal_size().columns
    most = max(len(headings[place]), _LEAST_CELL, widths[place] - max(0, over))
    for row in cells:
        if len(row[place]) > most:
            row[place] = f"{row[place][: most - 1]}…"


def print_fields(fields: Mapping[str, str]) -> None:
    """Print names and values, the values aligned, and as wide as the terminal."""
    width = max(map(len, fields), default=0) + 2
    for name, value in fields.items():
        first, *more = wrapped(value, width) or [""]
        print(f"{paint(name.ljust(width), 'bold')}{first}")
        for line in more:
            print(f"{' ' * width}{line}")


def wrapped(text: str, indent: int) -> list[str]:
    """The text in lines that fit to the right of so many columns; one line in a pipe."""
    if not sys.stdout.isatty():
        return [printable(text)] if text else []
    import textwrap

    room = max(shutil.get_terminal_size().columns - indent, _NARROWEST)
    return textwrap.wrap(printable(text), room, break_on_hyphens=False, break_long_words=False)


def tell_chosen_ports(machine: Machine) -> None:
    """Print on stderr the host ports that were chosen for a running machine."""
    asked = zip(machine.spec.ports, machine.ports, strict=True)
    for wanted, port in asked:
        if not wanted.host_port and port.host_port:
            print(f"{machine.name}: {port} leads to its port {port.guest_port}", file=sys.stderr)


def paint(text: str, colour: str, stream: TextIO | None = None) -> str:
    """The text in a colour if the stream (stdout) is a terminal that takes colours."""
    if not coloured(stream or sys.stdout):
        return text
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"


def coloured(stream: TextIO) -> bool:
    """Whether text on the stream may have colours."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def printable(text: str) -> str:
    """The text with control characters escaped: a guest must not control the user's terminal."""
    if text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in _CONTROL
        else character
        for character in text
    )


def age(moment: datetime) -> str:
    """The time since a moment, in its largest unit: ``5s``, ``3m``, ``2h``, ``9d``."""
    seconds = max(0, int((datetime.now(UTC) - moment).total_seconds()))
    for unit, name in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= unit:
            return f"{seconds // unit}{name}"
    return f"{seconds}s"


def short_digest(digest: str) -> str:
    """The beginning of a digest, for people."""
    return digest.removeprefix("sha256:")[:12]


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """Progress bars on stderr if it is a terminal; nothing in a pipe."""
    if not sys.stderr.isatty():
        yield _silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks = {}

        def show(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(printable(what), total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield show


def _silent(what: str, done: int, total: int | None) -> None:
    pass


def _line(
    cells: Sequence[str], widths: Sequence[int], colours: Mapping[str, str] | None = None
) -> str:
    padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
    padded[-1] = cells[-1]
    if colours is None:
        return "  ".join(padded).rstrip()
    painted = zip(cells, padded, strict=True)
    return "  ".join(
        paint(text, colours[cell]) if cell in colours else text for cell, text in painted
    ).rstrip()


_COLOURS = {"red": 31, "green": 32, "yellow": 33, "dim": 2, "bold": 1}
