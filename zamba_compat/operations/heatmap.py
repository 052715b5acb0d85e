"""An inspection as a map of layers x tensors, its distances as colour."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from zamba_compat.checkpoint.layouts.components import kind_of, layers_of
from zamba_compat.errors import DestinationError, ZambaCompatError

if TYPE_CHECKING:
    from zamba_compat.operations.inspect import Inspected, Inspection

_EQUAL, _ODD = "#d9d9d9", "#d62728"
PAGE = 11.0  # inches
_LONGEST = 60  # characters of a path in the title
# How a layer computes, what comes first first: a shared block, what carries it into the stream, the mixer.
_DEPTH = (
    r"embed_tokens|embedding",
    r"shared_transformer\.input_layernorm",
    r"self_attn\.q_proj\Z|sa\.mixer",
    r"self_attn\.k_proj\Z",
    r"self_attn\.v_proj\Z",
    r"self_attn\.linear_[qkv]_adapter",
    r"self_attn\.",
    r"shared_transformer\.pre_ff_layernorm",
    r"feed_forward\.gate_up_proj\Z",
    r"feed_forward\.gate_up_proj_adapter",
    r"feed_forward\.",
    r"shared_transformer\.",
    r"linear",
    r"input_layernorm",
    r"in_proj",
    r"conv1d",
    r"dt_bias",
    r"A_log",
    r"mamba\.D",
    r"mamba\.norm",
    r"out_proj",
    r"(?!.*(?:final_layernorm|lm_head|score))",
    r"final_layernorm",
    r"",
)


@dataclass(frozen=True)
class Grid:
    """Distances by tensor and layer.

    Attributes:
        rows: tensors by their names without the layer, in the order in which a layer uses them.
        columns: layers in depth order; None, where there is one, stands first for tensors outside of the layers.
        cells: (row, column) -> relative distance, None where it is unknown; without an entry nothing was compared.
    """

    rows: tuple[str, ...]
    columns: tuple[int | None, ...]
    cells: Mapping[tuple[str, int | None], float | None]


def copies_grid(found: Inspected, *, differing: bool = False) -> Grid:
    """The copies of each shared tensor, at the layers where they are stored.

    Args:
        differing: leave out tensors whose copies are equal and adapters' copies that are in no use.
    """
    cells = {}
    for one in found.copies:
        if differing and (one.equal or not one.counts):
            continue
        for name, distance in one.distances.items():
            for layer in layers_of(name, None) or (None,):
                cells[kind_of(one.key, slots=True), layer] = distance
    return _grid(cells)


def comparison_grid(found: Inspection) -> Grid:
    """The tensors of both checkpoints, at every layer that uses them."""
    pairs = () if found.comparison is None else found.comparison.tensors
    return _grid({(kind_of(p.name), layer): p.distance for p in pairs for layer in p.layers or (None,)})


def in_depth_order(kinds: Iterable[str]) -> list[str]:
    """Tensors by their names without the layer (`kind_of`), what a model computes with first first."""
    return sorted(dict.fromkeys(kinds), key=_depth)


def _depth(kind: str) -> tuple[int, list[tuple[int, str]]]:
    at = next(i for i, pattern in enumerate(_DEPTH) if re.search(rf"(?:\A|\.)(?:{pattern})", kind))
    return at, [(int(part) if part.isdecimal() else -1, part) for part in kind.split(".")]


def require_matplotlib() -> None:
    """ZambaCompatError where matplotlib cannot be imported."""
    try:
        import_module("matplotlib.figure")
    except ImportError as error:
        raise ZambaCompatError(
            "Drawing needs matplotlib, which cannot be imported.", remedy='pip install "zamba_compat[plot]"'
        ) from error


def draw(found: Inspection, path: str | os.PathLike[str]) -> Grid:
    """Write the map as a picture; the ending of `path` says which kind (.png, .svg, .pdf). Replaces what is there.

    Of two checkpoints the distance of b from a, of one the distances between its copies. Colours are logarithmic; grey
    is equal, red not to be compared or not finite, white nothing there.

    Returns:
        what was drawn.

    Raises:
        ZambaCompatError: matplotlib is missing, or there is nothing to draw.
        DestinationError: the picture cannot be written.
    """
    figure, grid = picture(found)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:  # ValueError: an ending that is no picture's
        raise DestinationError(
            f"The picture cannot be written: {error}.", where=str(path), remedy="Give the name of a .png file."
        ) from error
    return grid


def picture(found: Inspection) -> tuple[Any, Grid]:
    """The matplotlib figure that `draw` writes, a page high at most, and what is on it. Raises as `draw` does."""
    require_matplotlib()
    grid = copies_grid(found.a) if found.b is None else comparison_grid(found)
    if not grid.cells:
        what = "no shared tensor is stored more than once" if found.b is None else "no tensor is in both checkpoints"
        raise ZambaCompatError(f"There is nothing to draw: {what}.", remedy="Give a second checkpoint to compare with.")
    figure = import_module("matplotlib.figure").Figure(
        figsize=(7 + 0.17 * len(grid.columns), min(2 + 0.2 * len(grid.rows), PAGE)), layout="constrained"
    )
    axes = figure.add_subplot()
    colors, patches = import_module("matplotlib.colors"), import_module("matplotlib.patches")
    values = {cell: value for cell, value in grid.cells.items() if value and math.isfinite(value)}
    if values:
        low, high = min(values.values()), max(values.values())
        norm = colors.LogNorm(low, high) if low < high else colors.LogNorm(low / 2, high * 2)
        image = axes.imshow(_matrix(grid, values), norm=norm, cmap="viridis", aspect="auto", interpolation="nearest")
        figure.colorbar(image, label="relative distance")
    legend = []
    equal = {cell: 1.0 for cell, value in grid.cells.items() if value == 0}
    odd = {cell: 1.0 for cell in grid.cells if cell not in values and cell not in equal}
    for cells, color, label in ((equal, _EQUAL, "equal"), (odd, _ODD, "not comparable or not finite")):
        if cells:
            cmap = colors.ListedColormap([color])
            axes.imshow(_matrix(grid, cells), cmap=cmap, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
            legend.append(patches.Patch(color=color, label=label))
    step = math.ceil(len(grid.columns) / 30)
    shown = range(0, len(grid.columns), step)
    axes.set_xticks(list(shown), ["-" if grid.columns[i] is None else str(grid.columns[i]) for i in shown], fontsize=7)
    axes.set_yticks(list(range(len(grid.rows))), list(grid.rows), fontsize=min(7.0, 60 * (PAGE - 2) / len(grid.rows)))
    axes.set_xlabel("layer")
    title = (
        f"relative distance of the copies of each shared tensor from its first,\nin {_short(found.a.source)}"
        if found.b is None
        else f"relative distance of {_short(found.b.source)}\nfrom {_short(found.a.source)}"
    )
    figure.suptitle(title.replace("$", r"\$"), fontsize=9)
    if legend:
        figure.legend(handles=legend, loc="outside right upper", fontsize=7, frameon=False)
    return figure, grid


def _grid(cells: Mapping[tuple[str, int | None], float | None]) -> Grid:
    rows = tuple(in_depth_order(row for row, _ in cells))
    layers = {column for _, column in cells}
    inside = sorted(column for column in layers if column is not None)
    return Grid(rows, (*([None] if None in layers else []), *inside), cells)


def _short(source: str) -> str:
    return source if len(source) <= _LONGEST else "..." + source[3 - _LONGEST :]


def _matrix(grid: Grid, cells: Mapping[tuple[str, int | None], float]) -> list[list[float]]:
    return [[cells.get((row, column), math.nan) for column in grid.columns] for row in grid.rows]
