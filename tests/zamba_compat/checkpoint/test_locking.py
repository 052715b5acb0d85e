"""The working directory: owned by one, taken over when abandoned, never someone else's."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from zamba_compat.checkpoint.writing import locking
from zamba_compat.checkpoint.writing.locking import WorkingDirectory
from zamba_compat.errors import DestinationError

pytestmark = pytest.mark.skipif(os.name == "nt", reason="an open file cannot be removed there")


def test_made_and_removed(tmp_path: Path) -> None:
    working = WorkingDirectory(tmp_path / "d")
    working.acquire()
    assert working.path.parent == tmp_path
    assert working.path.is_dir()
    working.release()
    assert list(tmp_path.iterdir()) == []


def test_kept_for_the_next_run(tmp_path: Path) -> None:
    working = WorkingDirectory(tmp_path / "d")
    for _ in range(2):
        working.acquire()
        (working.path / "new").mkdir(exist_ok=True)
        working.release(keep=True)
        assert (working.path / "new").is_dir()


@pytest.mark.parametrize("kind", ["directory", "link"])
def test_a_directory_of_someone_else_is_left_alone(tmp_path: Path, kind: str) -> None:
    working, other = WorkingDirectory(tmp_path / "d"), tmp_path / "other"
    if kind == "link":
        other.mkdir()
        (other / "lock").touch()
        working.path.symlink_to(other)
    else:
        working.path.mkdir()
        (working.path / "thesis.tex").write_text("x")
    with pytest.raises(DestinationError, match="in the way"):
        working.acquire()
    assert working.path.exists()
    assert kind == "link" or (working.path / "thesis.tex").read_text() == "x"


def test_the_owner_before_leaves_between_open_and_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was locked then is a file without a name, which keeps nobody out."""
    first, second = WorkingDirectory(tmp_path / "d"), WorkingDirectory(tmp_path / "d")
    first.acquire()
    lock, calls = locking._lock, []

    def late(fd: int) -> None:
        calls.append(fd)
        if len(calls) == 1:
            first.release()
        lock(fd)

    monkeypatch.setattr(locking, "_lock", late)
    second.acquire()
    assert len(calls) == 2
    with pytest.raises(DestinationError, match="Another run"):
        WorkingDirectory(tmp_path / "d").acquire()
    second.release()
    assert list(tmp_path.iterdir()) == []


def test_another_takes_over_between_open_and_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = (WorkingDirectory(tmp_path / "d") for _ in range(3))
    first.acquire()
    lock = locking._lock

    def late(fd: int) -> None:
        monkeypatch.setattr(locking, "_lock", lock)
        first.release()
        third.acquire()
        lock(fd)

    monkeypatch.setattr(locking, "_lock", late)
    with pytest.raises(DestinationError, match="Another run"):
        second.acquire()
    third.release()
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(DestinationError, match="too long"):
        WorkingDirectory(tmp_path / ("x" * 250)).acquire()


@pytest.mark.parametrize(("kind", "told"), [("none", None), ("file", "Not a directory"), ("there", None)])
def test_looked_at_beforehand(kind: str, told: str | None, tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    if kind != "none":
        parent.touch() if kind == "file" else parent.mkdir()
    before = sorted(tmp_path.rglob("*"))
    for attempt in ("check", "acquire")[: 1 if told is None else 2]:
        with nullcontext() if told is None else pytest.raises(DestinationError, match=told):
            getattr(WorkingDirectory(parent / "d"), attempt)()
    assert sorted(tmp_path.rglob("*")) == before
