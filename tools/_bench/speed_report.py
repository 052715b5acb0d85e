"""The tables and the plot of tools/bench_inference.py."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _bench.kernels_ran import in_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Figures = Mapping[str, Mapping[str, Any]]

TITLES = {
    "import": "Zamba2, zamba_compat, bfloat16",
    "nf4": "Zamba2, zamba_compat, NF4",
    "llama": "Llama of as many parameters, bfloat16",
    "stock": "Zamba2, stock, bfloat16",
    "no-rope": "as the first, without rotary embedding",
    "long": "as the first, use_long_context",
}


def title(name: str) -> str:
    """A contestant in words."""
    return TITLES.get(name) or f"as the first, adapters of rank {name.removeprefix('rank-')}"


def report(figures: Figures, where: str) -> list[str]:
    """Markdown: what was measured, and the technical report's claims beside it."""
    lines = [f"{where}; {processor()}.", ""]
    lines += ["| prompt | model | first token, s | x Llama | each further, ms | x Llama | peak above the model, GB | "
              "cache, MB |", "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    lengths = sorted({length for one in figures.values() for length in one["lengths"]})
    for length in lengths:
        llama = figures.get("llama", {}).get("lengths", {}).get(length)
        for name, one in figures.items():
            found = one["lengths"].get(length)
            if found is None:
                continue
            first, token = (f"{found[what] / llama[what]:.2f}" if llama else "" for what in ("first", "token"))
            lines.append(
                f"| {length} | {title(name)} | {found['first']:.2f} | {first} | {1e3 * found['token']:.0f} | {token} | "
                f"{found['peak'] / 1e9:.2f} | {found['cache'] / 1e6:.0f} |"
            )
    return lines + at_once(figures, lengths) + kernels(figures) + claims(figures, lengths)


def at_once(figures: Figures, lengths: list[int]) -> list[str]:
    """Several prompts of the first length at once."""
    counts = sorted({count for one in figures.values() for count in one.get("rows", {})})
    if not counts:
        return []
    lines = ["", f'Several prompts of {lengths[0]} tokens at once; "most" is as many as fit.', ""]
    lines += ["| rows | model | first tokens, s | tokens/s | x Llama | peak above the model, GB | cache a row, MB |",
              "| ---: | --- | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for count in counts:
        llama = figures.get("llama", {}).get("rows", {}).get(count)
        for name, one in figures.items():
            if (found := one.get("rows", {}).get(count)) is None:
                continue
            times = f"{llama['token'] / found['token']:.2f}" if llama else ""
            rows = f"{count}, most" if one.get("largest") == count else str(count)
            lines.append(
                f"| {rows} | {title(name)} | {found['first']:.2f} | {count / found['token']:.0f} | {times} | "
                f"{found['peak'] / 1e9:.2f} | {found['cache'] / count / 1e6:.1f} |"
            )
    return lines


def kernels(figures: Figures) -> list[str]:
    """Which fused kernels ran."""
    told = [(title(name), one["kernels"]) for name, one in figures.items() if "kernels" in one]
    return ["", *(f"Kernels of {model}: {phases(found)}." for model, found in told)] if told else []


def phases(found: Mapping[str, list[str]]) -> str:
    """Those of a prompt and of a token in words."""
    prompt, token = in_words(found["prompt"]), in_words(found["token"])
    return prompt if prompt == token else f"{prompt} for a prompt, {token} for a token"


def claims(figures: Figures, lengths: list[int]) -> list[str]:
    """The report's three promises against what this machine shows."""
    if not {"import", "llama"} <= set(figures):
        return []
    ours, llama = figures["import"]["lengths"], figures["llama"]["lengths"]
    both = [length for length in lengths if length in ours and length in llama]
    lines = ["", "| against a transformer of its size | technical report | " + " | ".join(map(str, both)) + " |"]
    lines.append("| --- | ---: | " + " | ".join("---:" for _ in both) + " |")
    first = [f"{100 * (ours[n]['first'] / llama[n]['first'] - 1):+.0f}%" for n in both]
    speed = [f"{llama[n]['token'] / ours[n]['token']:.2f} x" for n in both]
    cache = [f"{llama[n]['cache'] / ours[n]['cache']:.2f} x" for n in both]
    lines.append("| time to the first token | -30 to -50% | " + " | ".join(first) + " |")
    lines.append("| tokens per second | 4 x | " + " | ".join(speed) + " |")
    lines.append("| cache, all of it, smaller by | 6 x | " + " | ".join(cache) + " |")
    if len(both) > 1:
        per_token = {name: _per_token(figures[name]["lengths"], both) for name in ("import", "llama")}
        lines.append("")
        lines.append(
            f"Cache per token: {per_token['import']:,.0f} bytes, the Llama's {per_token['llama']:,.0f}; "
            f"{per_token['llama'] / per_token['import']:.2f} x smaller."
        )
    return lines


def _per_token(by_length: Mapping[int, Mapping[str, float]], lengths: list[int]) -> float:
    short, long = lengths[0], lengths[-1]
    return (by_length[long]["cache"] - by_length[short]["cache"]) / (long - short)


def processor() -> str:
    """The processor in words, with the 16-bit instructions that oneDNN may use."""
    import torch

    from zamba_compat.cpu.gemv import has_tiles
    from zamba_compat.cpu.upcast import has_instructions

    name = platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    found = ["AVX512-BF16"] * has_instructions(torch.bfloat16) + ["AMX"] * has_tiles()
    return f"{name}, {torch.get_num_threads()} threads, {' and '.join(found) or 'no 16-bit instructions'}"


def picture(figures: Figures) -> Figure:
    """Three curves over the prompt's length: time to the first token, tokens per second, cache."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4), layout="constrained")
    panels = figure.subplots(1, 3)
    for name, one in figures.items():
        lengths = sorted(one["lengths"])
        rows = [one["lengths"][length] for length in lengths]
        for axes, values in zip(
            panels,
            ([r["first"] for r in rows], [1 / r["token"] for r in rows], [r["cache"] / 1e6 for r in rows]),
            strict=True,
        ):
            axes.plot(lengths, values, marker="o", label=title(name))
    labels = ("seconds to the first token", "tokens per second", "cache, MB")
    for axes, label, scale in zip(panels, labels, ("log", "linear", "log"), strict=True):
        axes.set(xlabel="tokens of the prompt", ylabel=label, xscale="log", yscale=scale)
    panels[1].set_ylim(bottom=0)  # where 0 has a place: a logarithmic panel would be all but empty
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", fontsize="small")
    return figure


def draw(figures: Figures, file: Path) -> None:
    """Write `picture` to a file, whose ending says of which kind."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "speed"}):
        picture(figures).savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
