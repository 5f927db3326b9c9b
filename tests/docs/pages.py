"""The commands of README.md and the pages of docs/, and what they are shown to print."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_PROMPT = "    $ "


@dataclass(frozen=True, slots=True)
class Command:
    """A command as a page has it."""

    words: str
    shown: tuple[str, ...]
    """The lines that the page shows under it."""

    @property
    def refused(self) -> bool:
        """Whether the page shows that it fails: notices come after what a command prints."""
        return bool(self.shown) and self.shown[0].startswith("cerne: ")


def pages() -> list[Path]:
    """README.md and every page that has commands."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [page for page in found if commands(page)]


def commands(page: Path) -> list[Command]:
    """The commands of a page, in order."""
    found: list[tuple[str, list[str]]] = []
    open_ = False
    for line in page.read_text().splitlines():
        if line.startswith(_PROMPT):
            found.append((line.removeprefix(_PROMPT), []))
            open_ = True
        elif open_ and line.startswith("    "):
            found[-1][1].append(line[4:])
        else:
            open_ = False
    return [Command(words, tuple(shown)) for words, shown in found]


def shape(line: str) -> str:
    """A line without what differs from run to run: numbers, times, sizes, made-up names, spaces."""
    line = re.sub(r"(/[\w.+-]+)+/", "/", line)
    line = re.sub(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}|[0-9a-f]{12}", "#", line)
    line = re.sub(r"\b(qemu|native)\b", "ENGINE", line)
    line = re.sub(r"\b[a-z]+-[a-z]+-\d+\b", "NAME", line)
    line = re.sub(r"\d[\d.:+T-]*([KMGs]\b)?|\B-\B", "#", line)
    return " ".join(line.split())
