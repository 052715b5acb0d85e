"""The release that an invented one is made from."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class Base(NamedTuple):
    """A release that exists: its package, its metadata, and further folders that it needs on the import path."""

    package: Path
    metadata: Path
    needs: tuple[Path, ...] = ()

    @classmethod
    def at(cls, paths: Iterable[Path]) -> Base:
        """The release in the first of these folders, or with none the installed one."""
        folder, *rest = paths or [_installed()]
        return cls(folder / "transformers", next(folder.glob("transformers-*.dist-info")), tuple(rest))

    def read(self, name: str) -> str:
        return (self.package / name).read_text(encoding="utf-8")

    def sources(self) -> list[str]:
        """Every source file, as a path below the package."""
        found = []
        for folder, _, names in os.walk(self.package):
            below = Path(folder).relative_to(self.package)
            found += [str(below / name) for name in names if name.endswith(".py")]
        return found


def _installed() -> Path:
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        raise importlib.metadata.PackageNotFoundError("transformers")
    return Path(spec.origin).parents[1]
