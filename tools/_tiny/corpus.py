"""Text that every Python installation carries: the standard library's source, and its reference prose.

Both corpora are bytes in a fixed order. Held-out text is cut from both before training: whole files of source,
whole paragraphs of prose (the reference repeats paragraphs between topics, so it is split there first).
"""

from __future__ import annotations

import importlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

# Packages that every installation has, near enough in style to learn something from in minutes.
PACKAGES = [
    "asyncio",
    "collections",
    "concurrent",
    "ctypes",
    "email",
    "http",
    "importlib",
    "json",
    "logging",
    "multiprocessing",
    "unittest",
    "urllib",
    "xml",
]
SKIPPED = frozenset({"test", "tests", "__pycache__"})
# Bytes taken from the start of each held-out module; every Python from 3.10 on has them.
HELD_OUT = {"asyncio/locks.py": 4096, "multiprocessing/managers.py": 4096, "unittest/loader.py": 4096}
# Of the prose, every 24th run of 12 paragraphs, up to this many bytes.
HELD_OUT_PROSE = 12288
RUN, EVERY = 12, 24


@dataclass(frozen=True)
class Corpus:
    """One kind of text: what to train on and what to measure on."""

    train: bytes
    held_out: bytes


def source_code() -> Corpus:
    """Every module of PACKAGES in order of path, held-out modules removed."""
    root = Path(sysconfig.get_paths()["stdlib"])
    modules = {
        path.relative_to(root).as_posix(): _text(path)
        for package in PACKAGES
        for path in sorted((root / package).rglob("*.py"))
        if SKIPPED.isdisjoint(path.relative_to(root).parts)
    }
    held = b"".join(modules.pop(name)[:size] for name, size in HELD_OUT.items())
    return Corpus(b"\n".join(modules.values()), held)


def prose() -> Corpus:
    """The language reference as pydoc ships it, each paragraph once, every 24th run of 12 held out."""
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    paragraphs = list(dict.fromkeys(p for key in sorted(topics) for p in topics[key].split("\n\n") if p.strip()))
    held: list[str] = []
    kept: list[str] = []
    for i, paragraph in enumerate(paragraphs):
        (held if i // RUN % EVERY == EVERY // 2 else kept).append(paragraph)
    joined = "\n\n".join(held).encode()[:HELD_OUT_PROSE]
    return Corpus("\n\n".join(kept).encode(), joined.decode(errors="ignore").encode())


def _text(path: Path) -> bytes:
    return path.read_bytes().replace(b"\r\n", b"\n").decode("utf-8", errors="ignore").encode()
