"""``cerne doctor``: what this host can do for virtual machines, and what to improve."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from cerne.cli.options import JsonOption
from cerne.cli.output import paint, print_json, wrapped

if TYPE_CHECKING:
    from cerne.client import Finding

_INDENT = 6
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
        first, *more = wrapped(finding.value, width + _INDENT)
        print(f"{paint(mark, colour)}  {paint(topic, 'bold')}  {first}")
        for line in more:
            print(f"{' ' * (width + _INDENT)}{line}")
        for line in wrapped(finding.advice, width + _INDENT):
            print(f"{' ' * (width + _INDENT)}{paint(line, 'dim')}")
