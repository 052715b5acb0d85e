"""Releases of transformers that do not exist, made from one that does.

`make` lays a variant out in a folder that is to come first on the import path. What it does not touch is linked,
bytecode included, so that one takes a fraction of a second and a few files.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
from pathlib import Path

from support.invented.base import Base
from support.invented.variants import DEFECTS, HARMLESS, VARIANTS, Files

__all__ = ["DEFECTS", "HARMLESS", "VARIANTS", "VERSION", "Base", "make"]

VERSION = "5.99.0"


def make(variant: str, folder: Path, base: Base | None = None, version: str = VERSION) -> tuple[Path, ...]:
    """Lay a variant out in `folder`, which must not exist; the folders to put first on the import path.

    Raises:
        KeyError: there is no such variant.
        ValueError: the base has not what the variant changes, or the change would change nothing.
    """
    base = base or Base.at(())
    files = VARIANTS[variant](base)
    unchanged = [name for name, text in files.items() if (base.package / name).exists() and text == base.read(name)]
    if unchanged:
        raise ValueError(f"{variant} leaves as they are: {', '.join(unchanged)}")
    number = '__version__ = "{}"'
    old = number.format(importlib.metadata.Distribution.at(base.metadata).version)
    init = files.get("__init__.py", base.read("__init__.py"))
    if old not in init:
        raise ValueError(f"__init__.py has no {old}")
    files["__init__.py"] = init.replace(old, number.format(version))

    folder.mkdir(parents=True)
    _link(base.package, folder / "transformers", files)
    _copy_metadata(base.metadata, folder / f"transformers-{version}.dist-info", version)
    return folder, *base.needs


def _link(source: Path, target: Path, files: Files) -> None:
    """A folder whose entries are links, but for what is to be written and the folders on the way to it."""
    target.mkdir()
    here = {name for name in files if "/" not in name}
    below = {name.partition("/")[0] for name in files} - here
    for name in here:
        (target / name).write_text(files[name], encoding="utf-8")
    for entry in source.iterdir():
        if entry.name in below:
            inner = {n.partition("/")[2]: text for n, text in files.items() if n.startswith(f"{entry.name}/")}
            _link(entry, target / entry.name, inner)
        elif entry.name == "__pycache__":
            (target / entry.name).mkdir()
            for code in entry.iterdir():
                if f"{code.name.partition('.')[0]}.py" not in here:
                    (target / entry.name / code.name).symlink_to(code)
        elif entry.name not in here:
            (target / entry.name).symlink_to(entry)


def _copy_metadata(source: Path, target: Path, version: str) -> None:
    shutil.copytree(source, target)
    metadata = target / "METADATA"
    text, count = re.subn(r"(?m)^Version: .*$", f"Version: {version}", metadata.read_text(encoding="utf-8"), count=1)
    if not count:
        raise ValueError(f"{metadata} names no version")
    metadata.write_text(text, encoding="utf-8")
