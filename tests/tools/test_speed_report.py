"""The plot of the benchmark: every figure is to be seen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from _bench.speed_report import draw, picture

FIGURES = {
    "import": {"lengths": {n: {"first": n / 200, "token": n**0.1, "cache": n * 1e5} for n in (128, 16384)}},
    "llama": {"lengths": {n: {"first": n / 300, "token": n / 9000, "cache": n * 1.4e5} for n in (128, 1024, 16384)}},
}


def test_every_point_lies_in_its_panel() -> None:
    figure = picture(FIGURES)
    figure.draw_without_rendering()
    assert len(figure.axes) == 3
    for axes in figure.axes:
        low, high = axes.get_ylim()
        (left, bottom), (right, top) = axes.transAxes.transform([(0, 0), (1, 1)])
        heights = []
        for line in axes.get_lines():
            for x, y in axes.transData.transform(line.get_xydata()):
                assert left <= x <= right and bottom <= y <= top
                heights.append((y - bottom) / (top - bottom))
        assert len(heights) == 5
        assert max(heights) - min(heights) > 0.5, f"{axes.get_ylabel()}: all at one height, from {low} to {high}"


def test_the_legend_covers_no_curve() -> None:
    figure = picture(FIGURES)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert not any(axes.get_legend() for axes in figure.axes)
    box = legend.get_window_extent()
    assert not any(box.overlaps(axes.get_window_extent()) for axes in figure.axes)


def test_two_drawings_are_the_same_file(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        draw(FIGURES, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_the_picture_in_the_docs_is_not_empty() -> None:
    """Of each panel the curves' coordinates, in the file itself: they span half of its height."""
    text = (Path(__file__).parents[2] / "docs" / "speed.svg").read_text(encoding="utf-8")
    panels = re.findall(r'<g id="axes_\d+">.*?(?=<g id="axes_|<g id="legend_|\Z)', text, re.DOTALL)
    assert len(panels) == 3
    for panel in panels:
        corners = [float(y) for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", panel.split("</g>")[0])]
        curves = re.findall(
            r'<path d="([^"]+)" clip-path="[^"]+" style="fill: none; stroke: #\w+; stroke-width: 1.5', panel
        )
        heights = [float(y) for curve in curves for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", curve)]
        assert len(curves) == 2 and max(heights) - min(heights) > (max(corners) - min(corners)) / 2
