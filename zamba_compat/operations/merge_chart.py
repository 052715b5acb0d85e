"""What every layer gets, as a table of layers x components and as a picture of layers x kinds of tensors."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module

from zamba_compat.checkpoint.layouts.components import COMPONENTS, OTHER
from zamba_compat.errors import DestinationError
from zamba_compat.merging.methods import METHODS
from zamba_compat.merging.report import Group, MergeReport

from .heatmap import PAGE, in_depth_order, require_matplotlib

_BASE, _NOTHING = "base", "-"


def said(group: Group) -> str:
    """What the tensors of a group get, in a cell."""
    if group.values is None:
        return _BASE
    if group.values:
        return "/".join(f"{value:.3g}" for value in group.values.values())
    numbers = [f"{value:.3g}" for value in group.settings.values() if not isinstance(value, bool)]
    return "/".join(numbers) or ("merged" if len(group.parents) > 1 else _BASE)


def layer_table(groups: Sequence[Group]) -> list[str]:
    """Lines: a row for layers that get the same, a column for each component; the layers of a shared block have a star.

    A cell with two numbers and dots between them stands for tensors that differ: those have lines of their own below.
    """
    columns = [name for name in (*COMPONENTS, OTHER) if any(group.component == name for group in groups)]
    cells: dict[tuple[int, str], list[Group]] = {}
    for group in groups:
        for layer in group.layers or (-1,):
            cells.setdefault((layer, group.component), []).append(group)
    rows = {layer: [_cell(cells.get((layer, name), [])) for name in columns] for layer, _ in sorted(cells)}
    lines = [["layer", *columns]]
    for layers, row in _runs(rows):
        lines.append([layers, *row])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    found = ["  " + "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    return [*found, *_apart(groups, {name for (_, name), same in cells.items() if len(set(map(said, same))) > 1})]


def legend(report: MergeReport) -> str:
    """What the cells of the table say, a sentence."""
    ordered = dict.fromkeys(model for group in report.groups for model in group.values or ())
    what = METHODS[report.method].main or "the parameters"
    of = f" of {' / '.join(ordered)}" if ordered else ""
    base = "base: nothing is said, the base's; *: one tensor of several layers"
    return f"Cells: {what}{of}; {base} (shared: {report.shared})."


def _cell(groups: Iterable[Group]) -> str:
    known = {said(group): None for group in groups}
    star = "*" if any(group.shared for group in groups) else ""
    words = sorted(known, key=lambda word: (word == _BASE, word))
    return (words[0] if len(words) == 1 else f"{words[0]}..{words[-1]}") + star if words else _NOTHING


def _runs(rows: Mapping[int, list[str]]) -> Iterable[tuple[str, list[str]]]:
    """Layers after each other that have the same row."""
    layers = list(rows)
    start = 0
    for at in range(1, len(layers) + 1):
        if at == len(layers) or rows[layers[at]] != rows[layers[start]] or layers[start] < 0:
            first, last = layers[start], layers[at - 1]
            yield ("outside" if first < 0 else f"{first}" if first == last else f"{first}-{last}"), rows[first]
            start = at


def _apart(groups: Sequence[Group], components: set[str]) -> list[str]:
    mixed = [group for group in groups if group.component in components]
    width = max((len(group.kind) for group in mixed), default=0)
    lines = []
    for group in mixed:
        where = f"layers {spans(group.layers)}" if group.layers else "outside of the layers"
        lines.append(f"  {group.kind:<{width}}  {where}{', shared' if group.shared else ''}: {said(group)}")
    return lines


def spans(layers: tuple[int, ...]) -> str:
    """Layers as ranges: "0-4 6 8-9"."""
    found: list[list[int]] = []
    for layer in layers:
        if found and found[-1][1] == layer - 1:
            found[-1][1] = layer
        else:
            found.append([layer, layer])
    return " ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in found)


def draw(report: MergeReport, path: str | os.PathLike[str]) -> dict[str, dict[tuple[str, int], float]]:
    """Write a picture, for each model a panel of kinds x layers with its number as colour; white: nothing is said.

    A method whose models have no numbers has one panel, of its first parameter. Replaces what is there; the ending of
    `path` says which kind (.png, .svg, .pdf).

    Returns:
        panel -> (kind, layer, -1 outside of them) -> number, as drawn.

    Raises:
        ZambaCompatError: matplotlib is missing.
        DestinationError: the picture cannot be written.
    """
    require_matplotlib()
    panels: dict[str, dict[tuple[str, int], float]] = {}
    for group in report.groups:
        numbers = {name: value for name, value in group.settings.items() if not isinstance(value, bool)}
        shown = group.values or dict(list(numbers.items())[:1])
        for name, value in shown.items():
            for layer in group.layers or (-1,):
                panels.setdefault(name, {})[group.kind, layer] = value
    rows = in_depth_order(group.kind for group in report.groups)
    columns = sorted({layer for group in report.groups for layer in group.layers or (-1,)})
    size = (4 + 0.17 * len(columns), min((1.5 + 0.2 * len(rows)) * max(1, len(panels)), PAGE))
    figure = import_module("matplotlib.figure").Figure(figsize=size, layout="constrained")
    values = [value for cells in panels.values() for value in cells.values()]
    for axes, (name, cells) in zip(
        figure.subplots(max(1, len(panels)), squeeze=False)[:, 0], panels.items(), strict=False
    ):
        matrix = [[cells.get((row, column), float("nan")) for column in columns] for row in rows]
        low, high = min(0.0, *values), max(1.0, *values)
        image = axes.imshow(matrix, vmin=low, vmax=high, cmap="viridis", aspect="auto", interpolation="nearest")
        figure.colorbar(image, label="t" if report.method.startswith("slerp") else "number")
        step = max(1, len(columns) // 30)
        ticks = range(0, len(columns), step)
        axes.set_xticks(list(ticks), ["-" if columns[i] < 0 else str(columns[i]) for i in ticks], fontsize=7)
        axes.set_yticks(list(range(len(rows))), rows, fontsize=min(7.0, 40 * size[1] / len(rows) / max(1, len(panels))))
        axes.set_xlabel("layer")
        axes.set_title(f"{report.method}: {name}".replace("$", r"\$"), fontsize=9)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:  # ValueError: an ending that is no picture's
        raise DestinationError(
            f"The picture cannot be written: {error}.", where=str(path), remedy="Give the name of a .png file."
        ) from error
    return panels
