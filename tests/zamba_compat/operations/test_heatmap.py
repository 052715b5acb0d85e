"""The map of an inspection: what lies where on it, and that it can be drawn."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from zamba_compat.checkpoint.resolving.contrast import Apart
from zamba_compat.errors import DestinationError, ZambaCompatError
from zamba_compat.operations.heatmap import Grid, comparison_grid, copies_grid, draw, in_depth_order, picture
from zamba_compat.operations.inspect import Comparison, Copies, Inspected, Inspection, Pair

STEM = "model.layers.{}.shared_transformer."
Q = f"{STEM}self_attn.q_proj.weight"
ADAPTER = f"{STEM}feed_forward.gate_up_proj_adapter_list.4.0.weight"
COPIES = (
    Copies(Q.format(2), Q.format(2), {Q.format(2): 0.0, Q.format(5): 0.1, Q.format(9): None}, False, True),
    Copies(ADAPTER.format(2), ADAPTER.format(9), {ADAPTER.format(2): 0.3, ADAPTER.format(9): 0.0}, False, False),
    Copies("model.embed_tokens.weight", "model.embed_tokens.weight", {"lm_head.weight": 0.0}, True, True),
)
PAIRS = (
    Pair(Q.format(2), "attention", (2, 5, 9), "", "", 0.02),
    Pair(ADAPTER.format(2), "adapters", (9,), "", "", 0.0),
    Pair("model.layers.2.mamba_decoder.mamba.D", "mamba", (2,), "", "", math.inf),
    Pair("model.layers.0.mamba.D", "mamba", (0,), "", "", 0.5),
    Pair("model.embed_tokens.weight", "embedding", (), "", "", None, "[1] and [2]"),
)


def inspected(*copies: Copies) -> Inspected:
    counts: dict[str, int] = {}
    return Inspected(
        "a$b", "divergent", "zamba2", 11, 0, 0, 0, counts, counts, {}, (), (), None, (), (), copies, (), ()
    )


def compared(*pairs: Pair) -> Inspection:
    nothing = Apart(0, 0, None, None)
    return Inspection(inspected(), inspected(), Comparison(pairs, {}, nothing, (), (), {}))


def test_copies() -> None:
    q, adapter = "shared_transformer.self_attn.q_proj", "shared_transformer.feed_forward.gate_up_proj_adapter_list.4.0"
    grid = copies_grid(inspected(*COPIES))
    assert grid.rows == ("model.embed_tokens", q, adapter) and grid.columns == (None, 2, 5, 9)
    assert grid.cells[q, 5] == 0.1 and grid.cells[q, 9] is None
    assert grid.cells[adapter, 2] == 0.3 and (adapter, 5) not in grid.cells
    assert copies_grid(inspected(*COPIES), differing=True).rows == (q,)


def test_comparison() -> None:
    grid = comparison_grid(compared(*PAIRS))
    assert grid.columns == (None, 0, 2, 5, 9)
    assert [grid.cells["shared_transformer.self_attn.q_proj", layer] for layer in (2, 5, 9)] == [0.02] * 3
    assert grid.cells["shared_transformer.feed_forward.gate_up_proj_adapter_list.0", 9] == 0
    assert grid.cells["mamba.D", 0] == 0.5 and grid.cells["mamba.D", 2] == math.inf
    assert grid.cells["model.embed_tokens", None] is None
    assert comparison_grid(Inspection(inspected())) == Grid((), (), {})


@pytest.mark.parametrize("ending", ["png", "svg"])
@pytest.mark.parametrize("pairs", [PAIRS, PAIRS[:1], PAIRS[1:2], PAIRS[-1:]], ids=["all", "one", "equal", "odd"])
def test_drawing(ending: str, pairs: tuple[Pair, ...], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"map.{ending}"
    found = compared(*pairs)
    assert draw(found, path) == comparison_grid(found)
    data = path.read_bytes()
    if ending == "png":
        assert data.startswith(b"\x89PNG")
    else:
        grey, red = (f"fill: {color}".encode() in data for color in ("#d9d9d9", "#d62728"))
        assert grey == (PAIRS[1] in pairs) and red == (PAIRS[-1] in pairs)
    assert "matplotlib.pyplot" not in sys.modules  # which would choose a window system


def test_rows_are_in_the_order_of_computation() -> None:
    order = [
        "model.embed_tokens",
        "shared_transformer.input_layernorm",
        "shared_transformer.self_attn.q_proj",
        "shared_transformer.self_attn.linear_q_adapter_list.0",
        "shared_transformer.self_attn.o_proj",
        "shared_transformer.pre_ff_layernorm",
        "shared_transformer.feed_forward.gate_up_proj",
        "shared_transformer.feed_forward.gate_up_proj_adapter_list.2.0",
        "shared_transformer.feed_forward.gate_up_proj_adapter_list.10.0",
        "shared_transformer.feed_forward.down_proj",
        "linear",
        "input_layernorm",
        "mamba.in_proj",
        "mamba.conv1d",
        "mamba.dt_bias",
        "mamba.A_log",
        "mamba.norm",
        "mamba.out_proj",
        "something.else",
        "model.final_layernorm",
        "lm_head",
    ]
    assert in_depth_order(sorted(order)) == in_depth_order(sorted(order, reverse=True)) == order


def test_the_legend_is_beside_and_the_title_says_from_what() -> None:
    pytest.importorskip("matplotlib")
    for found, title in (
        (compared(*PAIRS), "relative distance of a\\$b\nfrom a\\$b"),
        (
            Inspection(inspected(*COPIES)),
            "relative distance of the copies of each shared tensor from its first,\nin a\\$b",
        ),
    ):
        figure, grid = picture(found)
        figure.draw_without_rendering()
        (legend,) = figure.legends
        box = legend.get_window_extent()
        assert all(axes.get_window_extent().x1 <= box.x0 for axes in figure.axes) and box.x1 <= figure.bbox.x1
        assert figure.get_suptitle() == title
        assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == list(grid.rows)


def test_what_a_picture_shows() -> None:
    """Each cell lies in one image, at its row and column, with its distance."""
    pytest.importorskip("matplotlib")
    figure, grid = picture(compared(*PAIRS))
    distances, equal, odd = (image.get_array().filled(math.nan) for image in figure.axes[0].images)
    for y, row in enumerate(grid.rows):
        for x, column in enumerate(grid.columns):
            value = grid.cells.get((row, column), ...)
            known = isinstance(value, float) and 0 < value < math.inf
            assert (distances[y, x] == value) if known else not distances[y, x] >= 0
            assert bool(equal[y, x] == 1) is (value == 0)
            assert bool(odd[y, x] == 1) is (value in (None, math.inf))


def test_many_rows_fit_on_a_page(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pairs = [Pair(f"model.layers.0.mamba.part{i}.weight", "mamba", (0,), "", "", 0.1) for i in range(120)]
    draw(compared(*pairs), tmp_path / "map.png")
    header = (tmp_path / "map.png").read_bytes()[:24]
    assert len(comparison_grid(compared(*pairs)).rows) == 120
    assert int.from_bytes(header[20:24], "big") <= 11 * 150  # inches, at 150 dots each


def test_drawing_copies(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = Inspection(inspected(*COPIES))
    assert draw(found, tmp_path / "map.png") == copies_grid(found.a)


def test_what_cannot_be_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(ZambaCompatError, match="nothing to draw"):
        draw(Inspection(inspected()), tmp_path / "map.png")
    for name in ("map.docx", "absent/map.png"):
        with pytest.raises(DestinationError, match="cannot be written"):
            draw(compared(*PAIRS), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ZambaCompatError, match=r"matplotlib.*pip install \"zamba_compat\[plot\]\""):
        draw(compared(*PAIRS), tmp_path / "map.png")
