"""What tests/docs read: the pages of the documentation, their blocks, headings and links."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "fixtures" / "tiny"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
PRESENT = [page for page in PAGES if page.name != "CHANGELOG.md"]
"""Those that say what is, not what was."""
MODEL = re.compile(r"path/or/name|Zyphra/Zamba2-7B-Instruct\b")
"""What stands for a model that a reader has."""
_FENCE = re.compile(
    r"(?:^ *<!-- not run: (?P<reason>[^\n]*?) -->\n+)?"
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A fenced block: its language, its text, and the reason that a marker above it gives for not running it."""

    language: str
    text: str
    reason: str | None


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[Block]:
    """The fenced blocks of a language, in order."""
    found = _FENCE.finditer(read(page))
    return [
        Block(match["language"], textwrap.dedent(match["body"]), match["reason"])
        for match in found
        if match["language"] == language
    ]


def prose(page: Path) -> str:
    """A page without its fenced blocks and comments."""
    return re.sub(r"<!--.*?-->", "", _FENCE.sub("", read(page)), flags=re.DOTALL)


def lines(text: str) -> Iterator[str]:
    """The command lines of a block, continued ones joined."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip() and not line.strip().startswith("#"):
            yield line.strip()


def anchors(page: Path) -> set[str]:
    """What a link to this page may have behind #: its headings, as GitHub and the site name them."""
    return {slug(match) for match in re.findall(r"^#+ +(.+)$", prose(page), re.MULTILINE)}


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
