"""Variables for a command in a guest: from options, from this process, and from files.

A value on a command line is seen by every user of this host (proc(5)); ``--env KEY`` and
``--env-file`` keep it off.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from shlex import quote

from cerne.errors import InputError, NotFoundError
from cerne.spec.pairs import parse_pairs

_LARGEST_FILE = 1 << 20
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
"""Names of variables; some programs have points and dashes in theirs."""


def variables(words: Iterable[str], files: Iterable[str]) -> dict[str, str]:
    """The variables of ``--env-file`` and ``--env``; the latter ones replace the former.

    Raises:
        InputError: a word is not KEY=VALUE or the name of a variable of this process, or a file is
            not text.
        NotFoundError: a file is not readable.
    """
    found: dict[str, str] = {}
    for file in files:
        found |= _of_words(_words_of(Path(file)), f"the line of {file}")
    return found | _of_words(words, "--env")


def _of_words(words: Iterable[str], what: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in words:
        name = word.partition("=")[0]
        if name and not _NAME.fullmatch(name):
            raise InputError(
                f"{what} {word!r} names a variable {name!r}, which no shell takes",
                hint="write it with letters, digits and _, with no digit at its beginning",
            )
        if word and "=" not in word:
            found[word] = _inherited(word, what)
        else:
            found |= parse_pairs((word,), what)
    return found


def _inherited(key: str, what: str) -> str:
    value = os.environ.get(key)
    if value is None:
        raise InputError(
            f"{what} {key!r} has no value, and this command's environment has no {key}",
            hint=f"write it as KEY=VALUE, or set it first: export {key}=…",
        )
    return value


def _words_of(path: Path) -> Iterator[str]:
    """The lines of a file without empty ones and comments."""
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise NotFoundError(
            f"reading {path} failed: {error.strerror}", hint=f"see: ls -l {quote(str(path))}"
        ) from error
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not text (UTF-8)", hint="write a line KEY=VALUE for each variable"
        ) from error
    if len(content) > _LARGEST_FILE:
        raise InputError(
            f"{path} has more than {_LARGEST_FILE} bytes of variables",
            hint="copy long data into the guest: cerne cp",
        )
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            yield line
