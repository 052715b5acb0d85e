"""A destination before and after, and what a refusal must leave alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.raw_files import snapshot
from zamba_compat.checkpoint.writing.staging import Staging
from zamba_compat.errors import DestinationError

OLD = {"config.json": b"old", "model.safetensors": b"old weights", "sub": None, "sub/x": b"y"}
NEW = {"a": b"new", "sub": None, "sub/b": b"new too"}


def stage(destination: Path, *, overwrite: bool = False, sources: tuple[Path, ...] = ()) -> None:
    with Staging(destination, overwrite=overwrite, sources=sources) as staging:
        staging.write("a", "new")
        staging.write("sub/b", b"new too")
        staging.commit()


def make_old(destination: Path) -> None:
    (destination / "sub").mkdir(parents=True)
    for name, data in OLD.items():
        if data is not None:
            (destination / name).write_bytes(data)


def only(destination: Path) -> bool:
    """Whether nothing was left beside the destination."""
    return [path for path in destination.parent.iterdir() if path.name.startswith(".")] == []


def refused(destination: Path, match: str, **kwargs: object) -> DestinationError:
    before = snapshot(destination.parent)
    with pytest.raises(DestinationError, match=match) as caught:
        stage(destination, **kwargs)  # type: ignore[arg-type]
    assert str(os.path.realpath(destination)) in str(caught.value)
    assert caught.value.remedy
    assert snapshot(destination.parent) == before
    return caught.value
