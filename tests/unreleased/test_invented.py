"""In a release that nobody has seen, nothing wrong is silent; and where nothing has changed, nothing is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support import invented
from support.invented import DEFECTS, VARIANTS
from unreleased.judge import Cell, Judge

pytest.importorskip("transformers", minversion="5.16")  # what the variants edit
pytest.importorskip("bitsandbytes")

UNCHANGED = ("version only", "formatting")
BRIEF = (*UNCHANGED, "loader renamed", "ties copied")


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge() as process:
        yield process


def told(cells: list[Cell]) -> str:
    return "\n".join(f"{cell.scenario}: {cell.verdict}: {cell.detail}" for cell in cells)


@pytest.mark.parametrize("variant", [pytest.param(v, marks=() if v in BRIEF else pytest.mark.slow) for v in VARIANTS])
def test_nothing_is_silent(variant: str, judge: Judge, tmp_path: Path) -> None:
    cells, doctor = judge(invented.make(variant, tmp_path / "release"))
    assert not (silent := [cell for cell in cells if cell.verdict == "silent"]), told(silent)
    assert not (unexplained := [cell for cell in cells if cell.verdict == "failed"]), told(unexplained)
    wrong = [cell for cell in cells if cell.verdict != "right"]
    for cell in wrong:
        assert cell.groups, f"no group is named: {told([cell])}"
    if variant in UNCHANGED:
        assert not wrong, told(wrong)
        assert doctor["ok"] and doctor["status"] == 0, doctor
    elif wrong and variant not in DEFECTS:  # what only a loaded model shows, doctor without one cannot know
        assert doctor["status"] == 1 or doctor["changed"], doctor


def test_the_judge_hears_what_is_wrong_by_itself(judge: Judge) -> None:
    """Without any adapter, the release at hand is wrong in silence: a judge that finds nothing would be deaf."""
    off = {"ZAMBA_COMPAT_TEST_STOCK": "1"}
    cells, _ = judge((), ("long context", "embeddings untied", "int8", "inner padding"), settings=off)
    assert [cell.verdict for cell in cells] == ["silent"] * 4, told(cells)
