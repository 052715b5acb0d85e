"""Text that every Python installation carries: the standard library's source, and its reference prose.

Both corpora are bytes in a fixed order. Held-out text is cut from both before training: whole files of source,
whole paragraphs of prose (the reference repeats paragraphs between topics, so it is split there first).
"""

from __future__ import annotations

import importlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

# Left out: what is installed beside the library, what some installations lack, generated tables, prose.
SKIPPED = frozenset(
    "site-packages dist-packages test tests __pycache__ encodings pydoc_data __phello__ "
    "idlelib lib2to3 tkinter turtledemo distutils ensurepip".split()
)
# (file, bytes taken): three that every Python from 3.10 on has.
HELD_OUT_FILES = (("sched.py", 5120), ("textwrap.py", 5120), ("bisect.py", 2048))
# Of the prose, every 24th run of 12 paragraphs, up to this many bytes.
HELD_OUT_PROSE = 12288
RUN, EVERY = 12, 24


@dataclass(frozen=True)
class Corpus:
    """One kind of text: what to train on and what to measure on."""

    train: bytes
    held_out: bytes


def source_code() -> Corpus:
    """Every module of the standard library, in order of path, held-out files removed."""
    root = Path(sysconfig.get_paths()["stdlib"])
    held = {name for name, _ in HELD_OUT_FILES}
    texts = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if SKIPPED.isdisjoint(name.parts) and name.as_posix() not in held:
            texts.append(_text(path.read_bytes()))
    samples = [_text((root / name).read_bytes())[:size] for name, size in HELD_OUT_FILES]
    return Corpus(b"\n".join(texts), b"".join(samples))


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


def _text(raw: bytes) -> bytes:
    return raw.replace(b"\r\n", b"\n").decode("utf-8", errors="ignore").encode()
