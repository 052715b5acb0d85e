"""docs/quantizers.md: a table per release of transformers, whose rows are replaced one by one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .checks import HEADER

_TITLE = "## transformers "
_TOP = """# Quantizers

What the quantizers of transformers make of a Zamba2 model on a CPU, with this package: the tiny pretrained model of
tests/fixtures, whose weights take 4.00 MB in bfloat16. Each row was printed by
`python tools/check_quantizers.py --write docs/quantizers.md`: loaded, computed with, saved, and loaded again as saved,
with every block at every layer (expanded) and with every block at its last layer alone (partial), the logits compared
bit for bit. "a Llama too" says that the same library refuses any other model on a CPU with the same words.
"""
_LIBRARIES = ("torch", "bitsandbytes", "torchao", "compressed-tensors", "optimum-quanto", "hqq")


def update(path: Path, lines: Mapping[str, str], order: Sequence[str]) -> None:
    """Put the lines, by the names of their rows, into the table of the transformers that is installed.

    Args:
        path: the document; made where it is not there.
        lines: row -> its line.
        order: every row there may be, as the table has them.
    """
    sections = _read(path)
    ours = sections.setdefault(version("transformers"), {})
    ours.update(lines)
    text = _TOP
    for release in sorted(sections, key=lambda release: tuple(map(int, release.split(".")))):
        rows = [sections[release][name] for name in order if name in sections[release]]
        text += f"\n{_TITLE}{release}\n\n" + "\n".join([HEADER, *rows]) + "\n"
    text += f"\nWith {', '.join(_installed())}.\n"
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def _read(path: Path) -> dict[str, dict[str, str]]:
    sections: dict[str, dict[str, str]] = {}
    rows: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        if line.startswith(_TITLE):
            rows = sections.setdefault(line.removeprefix(_TITLE), {})
        elif line.startswith("| ") and line not in HEADER:
            rows[line.split(" | ")[0].removeprefix("| ")] = line
    return sections


def _installed() -> list[str]:
    found = []
    for name in _LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found
