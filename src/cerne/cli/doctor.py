"""``cerne doctor``: what this host can do for virtual machines, and what to improve."""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import TYPE_CHECKING

import typer

from cerne.cli.options import JsonOption
from cerne.cli.output import paint, print_json, printable

if TYPE_CHECKING:
    from cerne.client import Finding

_INDENT = 6
_NARROWEST = 20
_MARKS = {True: ("ok", "green"), False: ("--", "yellow"), None: ("  ", "dim")}


def doctor(json: JsonOption = False) -> None:
    """Report what this host can do and what to improve; fail if no machine can run."""
    from cerne.client.setup import report as make_report

    report = make_report()
    if json:
        print_json(report.as_json())
    else:
        _print(report.findings)
    if not report.able:
        raise typer.Exit(1)


def _print(findings: tuple[Finding, ...]) -> None:
    width = max(len(finding.topic) for finding in findings)
    for finding in findings:
        mark, colour = _MARKS[finding.good]
        topic = finding.topic.ljust(width)
        first, *more = _lines(finding.value, width + _INDENT)
        print(f"{paint(mark, colour)}  {paint(topic, 'bold')}  {first}")
        for line in more:
            print(f"{' ' * (width + _INDENT)}{line}")
        for line in _lines(finding.advice, width + _INDENT):
            print(f"{' ' * (width + _INDENT)}{paint(line, 'dim')}")


def _lines(text: str, indent: int) -> list[str]:
    """The text in lines that fit to the right of the topics; one line in a pipe."""
    if not sys.stdout.isatty():
        return [printable(text)] if text else []
    room = max(shutil.get_terminal_size().columns - indent, _NARROWEST)
    return textwrap.wrap(printable(text), room, break_on_hyphens=False, break_long_words=False)
