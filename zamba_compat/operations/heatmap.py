"""An inspection as a map of layers x tensors, its distances as colour."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from zamba_compat.checkpoint.layouts.components import kind_of, layers_of
from zamba_compat.errors import DestinationError, ZambaCompatError

if TYPE_CHECKING:
    from zamba_compat.operations.inspect import Inspected, Inspection

_EQUAL, _ODD = "#d9d9d9", "#d62728"
_PAGE = 11.0  # inches


@dataclass(frozen=True)
class Grid:
    """Distances by tensor and layer.

    Attributes:
        rows: tensors by their names without the layer, in stored order.
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
    require_matplotlib()
    grid = copies_grid(found.a) if found.b is None else comparison_grid(found)
    if not grid.cells:
        what = "no shared tensor is stored more than once" if found.b is None else "no tensor is in both checkpoints"
        raise ZambaCompatError(f"There is nothing to draw: {what}.", remedy="Give a second checkpoint to compare with.")
    figure = import_module("matplotlib.figure").Figure(
        figsize=(6 + 0.17 * len(grid.columns), min(2.5 + 0.2 * len(grid.rows), _PAGE)), layout="constrained"
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
    axes.set_yticks(
        list(range(len(grid.rows))), list(grid.rows), fontsize=min(7.0, 60 * (_PAGE - 2.5) / len(grid.rows))
    )
    axes.set_xlabel("layer")
    title = (
        f"copies in {found.a.source}: distance from the first"
        if found.b is None
        else f"distance of {found.b.source} from {found.a.source}"
    )
    axes.set_title(title.replace("$", r"\$"), fontsize=9)
    if legend:
        figure.legend(handles=legend, loc="outside lower left", fontsize=7, ncols=2, frameon=False)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:  # ValueError: an ending that is no picture's
        raise DestinationError(
            f"The picture cannot be written: {error}.", where=str(path), remedy="Give the name of a .png file."
        ) from error
    return grid


def _grid(cells: Mapping[tuple[str, int | None], float | None]) -> Grid:
    rows = tuple(dict.fromkeys(row for row, _ in cells))
    layers = {column for _, column in cells}
    inside = sorted(column for column in layers if column is not None)
    return Grid(rows, (*([None] if None in layers else []), *inside), cells)


def _matrix(grid: Grid, cells: Mapping[tuple[str, int | None], float]) -> list[list[float]]:
    return [[cells.get((row, column), math.nan) for column in grid.columns] for row in grid.rows]
