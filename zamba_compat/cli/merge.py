"""Merge checkpoints by a configuration of mergekit, which is read unchanged.

A tensor of a shared block gets the mean of what the configuration says at the layers that use the block, an adapter
what it says at its own position's layer (shared: mean, first, middle or separate). DST appears whole or not at all.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from zamba_compat.cli.counts import counted

from .convert import CHOICES, METHODS
from .progress import progress, telling
from .upload import asked
from .usage import DTYPES, WrongUsage, dtype, usage
from .writing import add_writing, finish

if TYPE_CHECKING:
    from zamba_compat.operations.judge_merge import Judgement
    from zamba_compat.operations.merge import MergeReport


EXAMPLES = """
  zamba-compat merge merge_config.yaml DST --dry-run --explain
  zamba-compat merge merge_config.yaml DST
  zamba-compat merge merge_config.yaml DST --push OWNER/NEW
  zamba-compat merge merge_config.yaml DST --dtype bfloat16 --quantize nf4 --double-quant
"""
# What `MergeReport.fallbacks` names, said of vectors that have it.
_FALLBACKS = {
    "near-parallel": "nearly the same direction in both models, or opposite ones: combined linearly, not on the sphere",
    "zero": "no length in one of the models, and so no direction: taken as at a right angle to the other's",
}
# Options of mergekit-yaml: what is done here instead, "" where mergekit alone has it.
_MERGEKITS = {
    "--out-shard-size": "--max-shard-size says it here, in bytes",
    "--lazy-unpickle": "files are never read whole here",
    "--low-cpu-memory": "files are never read whole here",
    "--copy-tokenizer": "the tokenizer is copied here unless the configuration says tokenizer_source: none",
    "--write-model-card": "a model card is always written here",
    "--clone-tensors": "every tensor is stored once here",
    **dict.fromkeys(("--cuda", "--device", "--multi-gpu", "--gpu-rich", "--read-to-gpu"), ""),
    **dict.fromkeys(("--lora-merge-cache", "--lora-merge-dtype", "--allow-crimes", "--trust-remote-code"), ""),
    **dict.fromkeys(("--transformers-cache", "--num-threads", "--no-copy-tokenizer", "--no-write-model-card"), ""),
}


class _Mergekits(argparse.Action):
    """An option of mergekit-yaml: says what to do without it, or with mergekit."""

    def __call__(self, parser: object, namespace: object, values: object, option: str | None = None) -> NoReturn:
        assert option is not None
        instead = _MERGEKITS.get(option)
        if instead:
            raise WrongUsage(f"{option} is an option of mergekit's that is not needed: {instead}.")
        command = f"zamba-compat run -- mergekit-yaml CONFIG OUT {option}"
        raise WrongUsage(f"{option} is an option that mergekit alone has: {command} merges with it.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(*_MERGEKITS, action=_Mergekits, nargs=0, dest="_mergekits", help=argparse.SUPPRESS)
    add("config", metavar="CONFIG", help="a YAML file as mergekit reads it")
    add("destination", metavar="DST", help="the directory to make")
    add("--explain", action="store_true", help="print what every part of the model gets, layer by layer")
    add("--plot", metavar="FILE", help="draw the same as a picture (needs matplotlib)")
    add(
        "--evaluate",
        action="append",
        default=[],
        type=Path,
        metavar="TEXT",
        help="a UTF-8 text: its perplexity by the parents and the result, and how far this lies from each of them; "
        "may be given again",
    )
    add(
        "--dtype",
        choices=DTYPES,
        type=dtype,
        help="of every floating-point tensor (default: the configuration's, or the base's)",
    )
    add("--max-shard-size", default="5GB", metavar="SIZE", help="bytes of tensors per file (default: %(default)s)")
    add(
        "--resolve",
        choices=CHOICES,
        help="a parent's copies of a shared tensor that differ, as in convert-checkpoint (default: the configuration's "
        "resolve, or they are refused)",
    )
    add("--random-seed", type=int, default=0, metavar="N", help="of methods that draw at random (default: %(default)s)")
    add("--quantize", choices=METHODS, help="the linear weights of the layers, see `zamba-compat quantize`")
    add("--double-quant", action="store_true", help="quantize the absmaxes of 4-bit blocks too")
    add(
        "--compute-dtype",
        choices=DTYPES,
        type=dtype,
        help="of products with 4-bit weights, for config.json (default: the model's)",
    )
    add("--keep-shared-16bit", action="store_true", help="leave the shared blocks unquantized")
    add_writing(parser, unknown="copy the base's tensors that are no part of the model")


def run(options: argparse.Namespace) -> int:
    from zamba_compat.checkpoint.writing.writer import parse_size
    from zamba_compat.operations.merge import MergeOptions, merge

    with usage():
        parse_size(options.max_shard_size)
    texts = texts_of(options)
    if options.plot:
        from zamba_compat.operations.heatmap import require_matplotlib

        require_matplotlib()  # before anything is merged
    where = asked(options)
    report = merge(
        options.config,
        options.destination,
        MergeOptions(
            dry_run=options.dry_run,
            max_shard_size=options.max_shard_size,
            dtype=options.dtype,
            overwrite=options.overwrite,
            allow_pickle=options.allow_pickle,
            allow_unknown=options.allow_unknown,
            resolve=options.resolve,
            quantize=options.quantize,
            double_quant=options.double_quant,
            compute_dtype=options.compute_dtype,
            keep_shared_16bit=options.keep_shared_16bit,
            random_seed=options.random_seed,
        ),
        progress=progress(options),
    )
    if not options.json and not options.quiet:
        print(text(report, explain=options.explain), flush=True)
    if options.plot:
        from zamba_compat.operations.merge_chart import draw

        draw(report, options.plot)
    found = _judge(report, texts, options) if texts else None
    if found is not None and not options.json:
        print("\n".join(judged(found)), flush=True)
    return finish(options, where, {**report.as_dict(), "evaluation": found and found.as_dict()})


def texts_of(options: argparse.Namespace) -> dict[str, str]:
    """What --evaluate names, read before anything is merged."""
    if not options.evaluate:
        return {}
    from zamba_compat.errors import ConfigError
    from zamba_compat.operations.calibrate import read_text

    if options.dry_run:
        raise ConfigError(
            "A dry run writes nothing that could be judged.", where="--evaluate", remedy="Leave out --dry-run."
        )
    names = [path.name for path in options.evaluate]
    return {path.name if names.count(path.name) == 1 else str(path): read_text(path) for path in options.evaluate}


def _judge(report: MergeReport, texts: dict[str, str], options: argparse.Namespace) -> Judgement:
    from zamba_compat.operations.judge_merge import judge

    files = tuple(map(str, options.evaluate))
    return judge(report, texts, files, progress=progress(options), tell=telling(options))


def text(report: MergeReport, *, explain: bool = False) -> str:
    """What was done, for a person."""
    done = "written" if report.written else "planned, nothing is written"
    models = (f"{model} ({layout})" if (layout := report.layouts[model]) else model for model in report.models)
    lines = [
        f"{' + '.join(models)} -> {report.destination}: {done}",
        f"  method       {report.method}, base {report.base_model}, shared: {report.shared}",
        f"  tensors      {report.tensors} written; {report.merged} computed, {report.copied} copied bit for bit",
        f"  bytes        {report.bytes:,} in {counted(len(report.shards), 'shard')}",
        f"  peak memory  about {report.peak_memory / 1e6:,.0f} MB beyond the libraries and mapped files",
        f"  tokenizer    {report.tokenizer_of or 'none'}",
    ]
    if report.kept:
        lines.append(
            f"  the base's   {counted(len(report.kept), 'tensor')} that no setting applies to, {report.kept[0]} first"
        )
    for what, found in report.fallbacks.items():
        count, first = sum(found.values()), next(iter(found))
        lines.append(f"  note         {_vectors(count, len(found), first)} {_FALLBACKS.get(what, what)}")
    if explain:
        lines += explained(report)
    lines += [f"  warning: {warning}" for warning in report.warnings]
    return "\n".join(lines)


def _vectors(vectors: int, tensors: int, first: str) -> str:
    if vectors == 1:
        return f"1 vector, {first}, has"
    return f"{vectors} vectors, in {counted(tensors, 'tensor')} ({first} first), have"


def explained(report: MergeReport) -> list[str]:
    """The table of layers, and what its numbers are."""
    from zamba_compat.operations.merge_chart import layer_table, legend

    return ["", *layer_table(report.groups), f"  {legend(report)}", ""]


def judged(found: Judgement) -> list[str]:
    """Perplexities, distances and commands, for a person."""
    from .evaluate import table

    parents = list(found.distances["all"])
    rows: list[tuple[str, ...]] = [("distance of the result from", *parents)]
    for name, one in found.distances.items():
        rows.append((name, *("-" if (far := one[parent]) is None else f"{far:.4g}" for parent in parents)))
    lines = [*table(found.perplexities.scores()), "", *table(rows), "", "look closer:"]
    return ["", *(f"  {line}" if line else "" for line in lines), *(f"    {command}" for command in found.commands)]
