"""Exchanging two directories in one step."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import pytest

from zamba_compat.checkpoint.writing import swap


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    a, b = tmp_path / "a", tmp_path / "b"
    for path in (a, b):
        path.mkdir()
        (path / path.name).touch()
    return a, b


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2")
def test_exchange(pair: tuple[Path, Path]) -> None:
    a, b = pair
    if not swap.exchange(a, b):
        pytest.skip("this file system cannot")
    assert [path.name for path in a.iterdir()] == ["b"]
    assert [path.name for path in b.iterdir()] == ["a"]


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2")
def test_a_failure_is_an_error(pair: tuple[Path, Path], tmp_path: Path) -> None:
    if not swap.exchange(*pair):
        pytest.skip("this file system cannot")
    with pytest.raises(FileNotFoundError) as caught:
        swap.exchange(pair[0], tmp_path / "missing")
    assert caught.value.errno == errno.ENOENT


def test_elsewhere_it_says_so(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "plan9")
    assert swap.exchange(*pair) is False
    assert (pair[0] / "a").exists()
