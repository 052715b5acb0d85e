"""Every merge method: zamba-compat beside mergekit, in seconds and memory, and whether they give the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open

# Method -> how many models, and what is said of the merge; of every model beside the base: weight and density.
PLAIN: dict[str, tuple[int, dict[str, Any]]] = {
    "linear": (2, {}),
    "slerp": (2, {"t": 0.4}),
    "nuslerp": (2, {}),
    "multislerp": (2, {}),
    "karcher": (2, {}),
    "task_arithmetic": (2, {"lambda": 0.7}),
    "ties": (2, {}),
    "dare_linear": (2, {}),
    "dare_ties": (2, {}),
    "della_linear": (2, {"epsilon": 0.1}),
    "della": (2, {"epsilon": 0.1}),
    "breadcrumbs": (2, {"gamma": 0.01}),
    "breadcrumbs_ties": (2, {"gamma": 0.01}),
    "sce": (2, {"select_topk": 0.5}),
    "ram": (2, {"epsilon": 1e-3}),
    "ramplus_tl": (2, {"epsilon": 1e-3}),
    "nearswap": (2, {"t": 0.005}),
    "arcee_fusion": (2, {}),
    "passthrough": (1, {"scale": 0.9}),
    "model_stock": (3, {}),
}
FOUR = ("ties", "dare_ties", "model_stock", "sce", "karcher")
WEIGHTS = {"density": 0.5, "weight": 0.6}
_WITHOUT_BASE = ("linear", "nuslerp", "multislerp", "karcher", "passthrough")
_DRAWN = ("dare", "della")
# What every merge has to do: read the parents, and write as much as one of them, hashed and safe on the disk.
LIMIT = """
import hashlib, json, os, sys
from _bench import measured
out, first, *rest = sys.argv[1:]
with measured() as result:
    piece = bytearray(2**22)
    for path in rest:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(piece):
                pass
    digest = hashlib.sha256()
    with open(first, "rb", buffering=0) as file, open(out, "wb", buffering=0) as made:
        while count := file.readinto(piece):
            digest.update(memoryview(piece)[:count])
            made.write(memoryview(piece)[:count])
        os.fsync(made.fileno())
print(json.dumps(result))
"""


def configurations(parents: list[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A title and a configuration for every method; some of four models, too."""
    rows = [(name, count) for name, (count, _) in PLAIN.items()] + [(name, 4) for name in FOUR]
    for name, count in rows:
        yield f"{name}, {count} models", configuration(name, parents[:count])


def configuration(name: str, parents: list[Path]) -> dict[str, Any]:
    """A method's, of all these parents; the first is the base where there is one."""
    base = {} if name in _WITHOUT_BASE else {"base_model": str(parents[0])}
    models = [{"model": str(parent), "parameters": WEIGHTS} for parent in parents]
    own = {"merge_method": name, "models": models, "parameters": PLAIN[name][1], **base}
    return {**own, "dtype": "float32", "out_dtype": "bfloat16"}


def table(
    work: Path,
    parents: list[Path],
    ours: Callable[..., Any],
    theirs: Callable[..., Any],
    limit: Callable[..., Any],
    exact: Callable[..., Any],
    only: list[str],
) -> None:
    """A row per method as it is measured. "limit" is what reading, hashing and writing alone take, see LIMIT.

    Args:
        ours, theirs: (configuration's file, output) -> seconds and peak_bytes, in a process of its own.
        limit: (output, weights of the parents) -> the same of LIMIT.
        exact: as theirs, with norms and orders as ours, or None and nothing done; see exactly.py.
        only: methods; all of them where it is empty.
    """
    print("| method | equal | s | limit | mergekit | times | CPU s | limit | mergekit | times | GB | mergekit |")
    print(f"|{'---|' * 12}")
    for title, words in configurations(parents):
        if only and words["merge_method"] not in only:
            continue
        config = work / "method.yml"
        config.write_text(yaml.safe_dump(words))
        outs = work / "ours", work / "theirs"
        a, b = (run(config, out) for run, out in zip((ours, theirs), outs, strict=True))
        weights = (Path(model["model"], "model.safetensors") for model in words["models"])
        least = limit(work / "copy", *weights)
        (work / "copy").unlink()
        said = drawn(*outs, parents[0]) if words["merge_method"].startswith(_DRAWN) else equal(*outs)
        if said.startswith("but"):
            shutil.rmtree(outs[1])
            said += f"; exactly: {equal(*outs)}" if exact(config, outs[1]) else ""
        cells = [title, said]
        for what in ("seconds", "cpu_seconds"):
            cells += [f"{one[what]:.1f}" for one in (a, least, b)] + [f"{b[what] / a[what]:.1f}"]
        cells += [f"{one['peak_bytes'] / 1e9:.2f}" for one in (a, b)]
        print(f"| {' | '.join(cells)} |", flush=True)
        for out in outs:
            shutil.rmtree(out, ignore_errors=True)


def equal(ours: Path, theirs: Path) -> str:
    """How many elements are more than one rounding step apart."""
    count = total = 0
    for a, b in _pairs(ours, theirs):
        step = 2.0**-7 * b.abs().maximum(a.abs()) + 1e-6 * b.abs().max()
        count += int(((a - b).abs() > step).sum())
        total += a.numel()
    return "yes" if not count else f"but for {count / total:.1g} of the elements"


def drawn(ours: Path, theirs: Path, base: Path) -> str:
    """Of how many elements, and how far in the mean, both differ from the base."""
    said = []
    for out in (ours, theirs):
        moved = far = total = 0.0
        for a, b in _pairs(out, base):
            moved += float((a != b).sum())
            far += float((a - b).abs().double().sum())
            total += a.numel()
        said.append(f"{moved / total:.4f} moved, {far / total:.6f} each")
    return "; mergekit ".join(said)


def _pairs(one: Path, other: Path) -> Iterator[tuple[Any, Any]]:
    files = [{name: file for file in folder.glob("*.safetensors") for name in _names(file)} for folder in (one, other)]
    assert files[0].keys() == files[1].keys()
    for name in files[0]:
        tensors = []
        for own in files:
            with safe_open(own[name], "pt") as opened:
                tensors.append(opened.get_tensor(name).float())
        yield tensors[0], tensors[1]


def _names(file: Path) -> list[str]:
    with safe_open(file, "pt") as opened:
        return list(opened.keys())
