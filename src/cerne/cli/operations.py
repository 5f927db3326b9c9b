"""Commands about long operations: what any command builds, fetches, starts or saves."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from cerne.cli.failure import Failures
from cerne.cli.options import JsonOption
from cerne.cli.output import age, print_fields, print_json, print_table

if TYPE_CHECKING:
    from cerne.client import OperationRow

app = typer.Typer(
    help="Long operations: list, inspect and cancel them.",
    no_args_is_help=True,
)

_COLOURS = {"running": "yellow", "succeeded": "green", "failed": "red"}


@app.command("ls")
def list_operations(json: JsonOption = False) -> None:
    """List the operations of the last 30 days, at most 1,000."""
    from cerne.client import connect

    operations = connect().operations()
    if json:
        print_json([_summary(row) for row in operations])
        return
    headings = ("ID", "KIND", "SUBJECT", "STATE", "PROGRESS", "BEGUN")
    rows = [
        (row.id, row.kind, row.subject, row.state, _progress(row), f"{age(_time(row.created))} ago")
        for row in operations
    ]
    print_table(headings, rows, _COLOURS, shortened=("PROGRESS", "SUBJECT"))


@app.command()
def inspect(
    operation: Annotated[str, typer.Argument(metavar="ID", help="The operation.")],
    json: JsonOption = False,
) -> None:
    """Show all that is known about an operation."""
    from cerne.client import connect

    row = connect().operation(operation)
    if json:
        print_json(_summary(row))
        return
    error = row.error or {}
    fields = {
        "id": row.id,
        "kind": row.kind,
        "subject": f"{row.subject_kind} {row.subject}",
        "state": row.state + (" (to be cancelled)" if row.cancel and row.ended is None else ""),
        "progress": _progress(row),
        "result": ", ".join(f"{name} {value}" for name, value in row.result.items()),
        "error": error.get("message", ""),
        "hint": error.get("hint", "").replace("\n", "; "),
        "process": str(row.process.pid) if row.process and row.ended is None else "",
        "begun": _moment(row.created) or "",
        "ended": _moment(row.ended) or "",
    }
    print_fields({field: value for field, value in fields.items() if value})


@app.command()
def cancel(
    operations: Annotated[list[str], typer.Argument(metavar="ID...", help="Operations.")],
) -> None:
    """Have operations end at their next step, with nothing left of them."""
    from cerne.client import connect

    host = connect()
    failures = Failures()
    for operation in operations:
        with failures.told():
            host.cancel_operation(operation)
            print(operation)
    failures.end()


def _progress(row: OperationRow) -> str:
    if row.total:
        return f"{row.stage} {100 * row.done // row.total}%"
    return f"{row.stage} {row.done}" if row.done else row.stage


def _summary(row: OperationRow) -> dict[str, object]:
    return {
        "id": row.id,
        "kind": row.kind,
        "subject_kind": row.subject_kind,
        "subject": row.subject,
        "state": row.state,
        "stage": row.stage,
        "done": row.done,
        "total": row.total,
        "result": dict(row.result),
        "error": None if row.error is None else dict(row.error),
        "cancel": row.cancel,
        "pid": row.process.pid if row.process and row.ended is None else None,
        "begun": _moment(row.created),
        "ended": _moment(row.ended),
    }


def _time(moment: float) -> datetime:
    return datetime.fromtimestamp(moment, UTC)


def _moment(moment: float | None) -> str | None:
    return None if moment is None else _time(moment).isoformat(timespec="milliseconds")
