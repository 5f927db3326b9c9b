"""What a guest has drawn on a serial terminal: the few ECMA-48 controls that our guests use."""

from __future__ import annotations

import re

_ROWS, _COLUMNS = 25, 80
_CONTROL_OR_CHARACTER = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|(.)", re.DOTALL)


def screen(drawn: bytes) -> str:
    """The text on the screen, its lines without what is blank at their ends."""
    cells = [[" "] * _COLUMNS for _ in range(_ROWS)]
    row = column = 0
    for found in _CONTROL_OR_CHARACTER.finditer(drawn.decode("latin-1")):
        parameters, control, character = found.groups()
        if control == "H":
            row, column = (int(number or 1) - 1 for number in (parameters + ";").split(";")[:2])
        elif character is not None:
            if row < _ROWS and column < _COLUMNS:
                cells[row][column] = character
            column += 1
    return "\n".join("".join(line).rstrip() for line in cells)
