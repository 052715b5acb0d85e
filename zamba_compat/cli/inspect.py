"""Show what a checkpoint holds, or compare two: layout, sharing map, adapters, quantization, missing and extra tensors.

Nothing is written but the picture. A broken checkpoint will do: every reason for which convert-checkpoint would refuse
it is listed as a fault, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from zamba_compat.cli.progress import progress

if TYPE_CHECKING:
    from zamba_compat.operations.heatmap import Grid
    from zamba_compat.operations.inspect import Comparison, Inspected, Inspection

EXAMPLES = """
  zamba-compat inspect CHECKPOINT
  zamba-compat inspect CHECKPOINT --values --json
  zamba-compat inspect BASE TUNED --component attention feed_forward --plot map.png
"""
# As in checkpoint/layouts/components.py, which takes longer to import than --help may.
COMPONENTS = ("embedding", "mamba", "attention", "feed_forward", "adapters", "linear", "norms")
_NAMED = 12

Row = tuple[str, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "a",
        metavar="A",
        help="a directory, an index, a single file, or a model on the hub: OWNER/NAME or OWNER/NAME@REVISION",
    )
    add("b", metavar="B", nargs="?", help="another one: also how far each of its tensors lies from A's")
    add(
        "--component",
        choices=COMPONENTS,
        nargs="+",
        action="extend",
        metavar="NAME",
        help=f"count and compare only these: {', '.join(COMPONENTS)}",
    )
    add("--values", action="store_true", help="read every tensor and look for NaN and infinity")
    add("--tensors", action="store_true", help="list the distance of every tensor, not a summary over the layers")
    add("--plot", metavar="FILE", help="draw layers x tensors, the distance as colour (needs matplotlib)")
    add("--allow-pickle", action="store_true", help="read .bin and .pt files (tensors only, no code is run)")
    add("--json", action="store_true", help="the whole report as JSON")
    add("-q", "--quiet", action="store_true", help="no progress and no report, only errors and the exit status")


def run(options: argparse.Namespace) -> int:
    from zamba_compat.operations.heatmap import draw, require_matplotlib
    from zamba_compat.operations.inspect import inspect

    if options.plot:
        require_matplotlib()  # before the checkpoints are read
    found = inspect(
        options.a,
        options.b,
        components=tuple(options.component or COMPONENTS),
        values=options.values,
        allow_pickle=options.allow_pickle,
        progress=progress(options),
    )
    if options.json:
        print(json.dumps(found.as_dict(), indent=2, allow_nan=False))
    elif not options.quiet:
        print(text(found, every_tensor=options.tensors))
    if options.plot:
        draw(found, options.plot)
    return 0 if found.ok else 1


def text(found: Inspection, *, every_tensor: bool = False) -> str:
    """What was found, for a person; two checkpoints side by side."""
    sides = [found.a] if found.b is None else [found.a, found.b]
    rows: list[Row] = [("checkpoint", *(side.source for side in sides))]
    rows += [(label, *map(value, sides)) for label, value in _FACTS]
    for label, count in (("position", "positions"), ("block", "blocks")):
        show = _position if count == "positions" else _block
        for i in range(max(len(getattr(side, count)) for side in sides)):
            rows.append((f"{label} {i}", *(show(side, i) for side in sides)))
    lines = [*_table(rows), "", *_table(_components(sides), right=True)]
    for letter, side in zip("AB", sides, strict=False):
        lines += _apart(side, f" in {letter}" if len(sides) > 1 else "")
    if found.comparison is not None:
        lines += ["", *_comparison(found.comparison, every_tensor)]
    for letter, side in zip("AB", sides, strict=False):
        of = f" in {letter}" if len(sides) > 1 else ""
        lines += [f"warning{of}: {warning}" for warning in side.warnings]
        lines += [f"fault{of}: {fault}" for fault in side.faults]
    lines += ["no faults found"] if found.ok else []
    return "\n".join(map(_plain, lines))


def _model(side: Inspected) -> str:
    return "unknown" if side.model_type is None else f"{side.model_type}, {side.num_layers} layers"


def _quantized(side: Inspected) -> str:
    found = side.quantization
    if found is None:
        return "no"
    kinds = ", ".join(f"{count} weights {kind}" for kind, count in found.weights.items()) or "in config.json only"
    return f"{kinds}{', doubly' if found.double else ''}, {found.shared} of them shared"


def _copies(side: Inspected) -> str:
    apart = [one for one in side.copies if not one.equal and one.counts]
    if not side.blocks:
        return "unknown"
    if not side.copies:
        return "each shared tensor at most once"
    return f"{len(side.copies)} tensors more than once, {len(apart)} of them differ"


_FACTS: tuple[tuple[str, Callable[[Inspected], str]], ...] = (
    ("layout", lambda side: side.layout),
    ("model", _model),
    ("keys", lambda side: f"{side.tensors:,}"),
    ("parameters", lambda side: f"{side.parameters:,}"),
    ("size", lambda side: f"{_size(side.bytes)} in {len(side.shards)} {'file' if len(side.shards) == 1 else 'files'}"),
    ("dtypes", lambda side: ", ".join(f"{word} {count}" for word, count in side.dtypes.items()) or "-"),
    ("quantized", _quantized),
    ("copies", _copies),
    ("missing", lambda side: _named(side.missing)),
    ("extra", lambda side: _named(side.extra)),
    ("not finite", lambda side: "not searched (--values)" if side.nonfinite is None else _named(side.nonfinite)),
)


def _position(side: Inspected, index: int) -> str:
    if index >= len(side.positions):
        return "-"
    at = side.positions[index]
    return f"layer {at['layer']}, block {at['block']}, canonical layer {at['canonical_layer']}"


def _block(side: Inspected, index: int) -> str:
    if index >= len(side.blocks):
        return "-"
    block = side.blocks[index]
    words = [f"{block.parameters:,} parameters", f"stored at {_numbers(block.stored)}"]
    if block.adapters:
        words.append(f"adapters {_numbers(block.adapters_stored)}")
    lacking = [i for i in block.adapters if i not in block.adapters_stored]
    for numbers, what in ((lacking, "not whole"), (block.adapters_misplaced, "in other blocks' slots")):
        if numbers:
            words.append(f"{_numbers(numbers)} {what}")
    return "; ".join(words)


def _components(sides: Sequence[Inspected]) -> list[Row]:
    names = dict.fromkeys(name for side in sides for name in side.components)
    rows: list[Row] = [("component", *("keys", "parameters", "size") * len(sides))]
    for name in names:
        row = [name]
        for side in sides:
            one = side.components.get(name)
            row += ["-"] * 3 if one is None else [f"{one.tensors:,}", f"{one.parameters:,}", _size(one.bytes)]
        rows.append(tuple(row))
    return rows


def _apart(side: Inspected, of: str) -> list[str]:
    from zamba_compat.operations.heatmap import copies_grid

    grid = copies_grid(side, differing=True)
    if not grid.cells:
        return []
    title = f"copies that differ{of}: relative distance from the first one, by layer"
    return ["", title, *_table(_cells(grid), right=True)]


def _cells(grid: Grid) -> list[Row]:
    rows: list[Row] = [("", *("-" if column is None else str(column) for column in grid.columns))]
    for row in grid.rows:
        cells = (_number(grid.cells[row, c]) if (row, c) in grid.cells else "" for c in grid.columns)
        rows.append((row.removeprefix("shared_transformer."), *cells))
    return rows


def _comparison(found: Comparison, every_tensor: bool) -> list[str]:
    rows: list[Row] = [("component", "tensors", "equal", "distance", "most apart")]
    for name, one in (*found.components.items(), ("all", found.total)):
        rows.append((name, str(one.tensors), str(one.equal), _number(one.distance), one.largest or "-"))
    lines = ["distance of B from A, relative to A", *_table(rows, right=True, left=(4,)), ""]
    if every_tensor:
        pairs = [(pair.name, _number(pair.distance), pair.reason) for pair in found.tensors]
        lines += _table([("tensor", "distance", ""), *pairs], right=True, left=(2,))
    else:
        lines += _table(_summary(found), right=True)
    lines += [f"only in A: {_named(found.only_a)}"] if found.only_a else []
    lines += [f"only in B: {_named(found.only_b)}"] if found.only_b else []
    for key, (a, b) in found.config.items():
        lines.append(f"config {key}: {_short(a)} and {_short(b)}")
    return lines


def _summary(found: Comparison) -> list[Row]:
    """Tensors of one kind over the layers."""
    import statistics

    from zamba_compat.checkpoint.layouts.components import kind_of

    kinds: dict[str, list[float | None]] = {}
    for pair in found.tensors:
        kinds.setdefault(kind_of(pair.name), []).append(pair.distance)
    rows: list[Row] = [("tensor", "how many", "least", "median", "most", "not comparable")]
    for kind, distances in kinds.items():
        known = sorted(d for d in distances if d is not None and d == d)
        cells = [known[0], statistics.median(known), known[-1]] if known else [None] * 3
        rows.append((kind, str(len(distances)), *map(_number, cells), str(len(distances) - len(known) or "-")))
    return rows


def _table(rows: Sequence[Row], *, right: bool = False, left: Sequence[int] = ()) -> list[str]:
    """Columns of equal width, the first to the left, the others too unless `right`, but for those in `left`."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row: Row) -> str:
        cells = (
            f"{cell:>{width}}" if right and i and i not in left else f"{cell:<{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    return [line(row) for row in rows]


def _numbers(numbers: Iterable[int]) -> str:
    return " ".join(map(str, numbers)) or "none"


def _number(value: float | None) -> str:
    return "-" if value is None else "0" if value == 0 else f"{value:.2e}"


def _named(names: Sequence[str] | None) -> str:
    if not names:
        return "unknown" if names is None else "none"
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{len(names)}: {', '.join(names[:_NAMED])}{more}"


def _plain(line: str) -> str:
    """A line without what a terminal would obey: names in a file may hold anything."""
    return line if line.isprintable() else line.encode("unicode_escape").decode()


def _short(value: object) -> str:
    words = json.dumps(value, default=str)
    return words if len(words) <= 60 else words[:57] + "..."


def _size(count: int) -> str:
    for power, unit in ((3, "GB"), (2, "MB"), (1, "KB")):
        if count >= 1000**power:
            return f"{count / 1000**power:.2f} {unit}"
    return f"{count} bytes"
