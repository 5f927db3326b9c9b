"""Reads answers to QMP commands: the machine's process may be in an attacker's hands."""

from __future__ import annotations

from collections.abc import Mapping


def mapping(answer: object) -> Mapping[str, object]:
    """An object, or an empty one in place of anything else."""
    return answer if isinstance(answer, dict) else {}


def mappings(answer: object) -> list[Mapping[str, object]]:
    """A list of objects, or an empty one in place of anything else."""
    return [mapping(each) for each in answer] if isinstance(answer, list) else []
