"""Filters of system calls: from rules to a program of classic BPF (seccomp(2)).

A filter sees the number of a call and its arguments, and nothing that they point to. It checks
the calls in the order of its rules; a call that no rule names gets the default answer.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_INSTRUCTION = struct.Struct("<HBBI")
_OPEN, _OPENAT = 2, 257
_READ_AND_WRITE = (0o2, 0o100002)
"""O_RDWR and no other flag; O_LARGEFILE changes nothing."""
_LOAD, _AND, _EQUAL, _NOT_BELOW, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_X86_64 = 0xC000_003E
_X32 = 0x4000_0000
_ALL_BITS = 0xFFFF_FFFF

ALLOW = 0x7FFF_0000
"""The kernel executes the call."""
KILL = 0x8000_0000
"""The kernel ends the process."""
ASK = 0x7FC0_0000
"""The call waits for the answer of the process that has the filter's listener."""


def fail(number: int) -> int:
    """The action by which a call fails with this errno."""
    return 0x0005_0000 | number


class Condition(NamedTuple):
    """What an argument must be: one of these values, after it is masked; only 32 bits count."""

    argument: int
    values: tuple[int, ...]
    mask: int = _ALL_BITS


class Rule(NamedTuple):
    """What happens at one call."""

    number: int
    action: int = ALLOW
    conditions: tuple[Condition, ...] = ()
    """All must hold; otherwise the call fails with EPERM."""


def program(rules: Iterable[Rule], default: int) -> bytes:
    """The program with these rules; a call of another architecture ends the process."""
    instructions = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, _X86_64),
        (_RETURN, 0, 0, KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_NOT_BELOW, 0, 1, _X32),
        (_RETURN, 0, 0, KILL),
    ]
    for rule in rules:
        body = [*_checks(rule), (_RETURN, 0, 0, rule.action)]
        instructions += [(_EQUAL, 0, len(body), rule.number), *body]
    instructions.append((_RETURN, 0, 0, default))
    return b"".join(_INSTRUCTION.pack(*each) for each in instructions)


def opening() -> bytes:
    """The program that asks whenever a file is opened to be read and written, with no other flag.

    It allows all else, so that it is for use beside another filter.
    """
    instructions = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, _X86_64),
        (_RETURN, 0, 0, KILL),
    ]
    for number, argument in ((_OPEN, 1), (_OPENAT, 2)):
        body = [
            (_LOAD, 0, 0, _ARGUMENTS + 8 * argument),
            (_EQUAL, 1, 0, _READ_AND_WRITE[0]),
            (_EQUAL, 0, 1, _READ_AND_WRITE[1]),
            (_RETURN, 0, 0, ASK),
            (_RETURN, 0, 0, ALLOW),
        ]
        instructions += [(_LOAD, 0, 0, _NUMBER), (_EQUAL, 0, len(body), number), *body]
    instructions.append((_RETURN, 0, 0, ALLOW))
    return b"".join(_INSTRUCTION.pack(*each) for each in instructions)


def _checks(rule: Rule) -> Iterator[tuple[int, int, int, int]]:
    for condition in rule.conditions:
        yield (_LOAD, 0, 0, _ARGUMENTS + 8 * condition.argument)
        if condition.mask != _ALL_BITS:
            yield (_AND, 0, 0, condition.mask)
        for index, value in enumerate(condition.values):
            # Past the other values and the failure, to the next condition.
            yield (_EQUAL, len(condition.values) - index, 0, value)
        yield (_RETURN, 0, 0, fail(errno.EPERM))
