"""Convert a checkpoint between layouts: hub, expanded (also with copies that differ), untied, and Zyphra's own two.

The layout of SRC is recognised. DST appears whole or not at all. Everything beside the weights is copied, and a section
of the model card says what was done.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from zamba_compat.cli.counts import counted
from zamba_compat.cli.progress import progress
from zamba_compat.cli.upload import asked
from zamba_compat.cli.usage import DTYPES, dtype, usage
from zamba_compat.cli.writing import add_writing, finish

if TYPE_CHECKING:
    from zamba_compat.checkpoint.writing.report import Report

EXAMPLES = """
  zamba-compat convert-checkpoint SRC DST
  zamba-compat convert-checkpoint MERGED DST --resolve absorb --dry-run
  zamba-compat convert-checkpoint SRC DST --layout expanded --dtype bfloat16 --max-shard-size 2GB
  zamba-compat convert-checkpoint OWNER/NAME@REVISION DST --push OWNER/NEW
  zamba-compat convert-checkpoint pytorch_model.bin DST --allow-pickle
"""
# As in checkpoint/layouts/contents.py, resolve.py and report.py, which take longer to import than --help may.
LAYOUTS = ("hub", "expanded", "untied", "zyphra-fork", "zyphra-native")
CHOICES = ("error", "first", "mean", "karcher", "untie", "absorb")
FORMATS = ("safetensors", "torch")
METHODS = ("nf4", "fp4", "int8", "w4a16", "w8a16", "fp8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--layout", choices=LAYOUTS, default="hub", help="of the output (default: %(default)s)")
    add(
        "--format",
        choices=FORMATS,
        help="of the weights: safetensors, or torch, one pytorch_model.bin as the code of Zyphra's standalone "
        "repository reads (default: safetensors; torch for zyphra-native)",
    )
    add("--quantize", choices=METHODS, help="the linear weights of the layers, see `zamba-compat quantize`")
    add_common(parser)


def add_common(parser: argparse.ArgumentParser) -> None:
    """The arguments that quantize has too."""
    add = parser.add_argument
    add(
        "source",
        metavar="SRC",
        help="a directory, an index, a single file, or a model on the hub: OWNER/NAME or OWNER/NAME@REVISION",
    )
    add("destination", metavar="DST", help="the directory to make")
    add("--double-quant", action="store_true", help="quantize the absmaxes of 4-bit blocks too")
    add(
        "--compute-dtype",
        choices=DTYPES,
        type=dtype,
        help="of products with 4-bit weights, for config.json (default: the model's)",
    )
    add("--keep-shared-16bit", action="store_true", help="leave the shared blocks unquantized")
    add(
        "--group-size",
        type=int,
        metavar="N",
        help="columns that share a scale, -1 for whole rows (w4a16 and w8a16; default: 128)",
    )
    add("--asymmetric", action="store_true", help="a zero point beside each scale (w4a16 and w8a16)")
    add(
        "--ignore",
        action="append",
        default=[],
        metavar="MODULE",
        help="leave these unquantized too: a part of modules' names (in_proj), a whole name, or re:PATTERN "
        "(w4a16, w8a16, fp8; again for more; lm_head always is)",
    )
    add(
        "--gptq",
        metavar="TEXT",
        help="a text file: round w4a16 or w8a16 so that the layers' outputs on it change least",
    )
    add("--act-order", action="store_true", help="with --gptq, the columns that weigh most in the text first")
    add(
        "--resolve",
        choices=CHOICES,
        default="error",
        help="copies of a shared tensor that differ: refuse them (error, the default); tie them to the first, the mean "
        "or the mean on the sphere (karcher); keep them all, each position its own block (untie, exact); or tie them "
        "and put the difference into each position's adapters (absorb)",
    )
    add("--adapter-rank", type=int, metavar="N", help="raise the adapters' rank with --resolve absorb")
    add(
        "--dtype",
        choices=DTYPES,
        type=dtype,
        help="of every floating-point tensor; fp32, bf16 and fp16 for short (default: as stored)",
    )
    add("--max-shard-size", default="5GB", metavar="SIZE", help="bytes of tensors per file (default: %(default)s)")
    add("--calibrate", metavar="TEXT", help="a text file: measure the KL divergence from the untied model on it")
    add(
        "--keep-unused-adapters",
        action="store_true",
        help="keep the adapters of Zyphra's layouts that no position uses (default: drop them)",
    )
    add_writing(parser, unknown="copy tensors that are no part of the model")


def run(options: argparse.Namespace) -> int:
    from zamba_compat.checkpoint.writing.writer import parse_size
    from zamba_compat.operations.convert import Options, convert

    with usage():
        parse_size(options.max_shard_size)
    where = asked(options)
    report = convert(
        options.source,
        options.destination,
        Options(
            layout=options.layout,
            format=options.format,
            resolve=options.resolve,
            adapter_rank=options.adapter_rank,
            dtype=options.dtype,
            max_shard_size=options.max_shard_size,
            dry_run=options.dry_run,
            overwrite=options.overwrite,
            allow_unknown=options.allow_unknown,
            allow_pickle=options.allow_pickle,
            calibrate=options.calibrate,
            quantize=options.quantize,
            double_quant=options.double_quant,
            compute_dtype=options.compute_dtype,
            keep_shared_16bit=options.keep_shared_16bit,
            group_size=options.group_size,
            asymmetric=options.asymmetric,
            ignore=tuple(options.ignore),
            gptq=options.gptq,
            act_order=options.act_order,
            keep_unused_adapters=options.keep_unused_adapters,
        ),
        progress=progress(options),
    )
    if not options.json and not options.quiet:
        print(text(report), flush=True)
    return finish(options, where, report.as_dict())


def text(report: Report) -> str:
    """What was done, for a person."""
    done = "written" if report.written else "planned, nothing is written"
    lines = [
        f"{report.source} ({report.source_layout}) -> {report.destination} ({report.options.layout}): {done}",
        f"  tensors      {report.tensors_stored} -> {report.tensors}",
        f"  bytes        {report.bytes_stored:,} -> {report.bytes:,} in {counted(len(report.shards), 'shard')}",
        f"  peak memory  about {report.peak_memory / 1e6:,.0f} MB beyond the libraries and mapped files",
    ]
    for key, (before, after) in report.config.items():
        lines.append(f"  config       {key}: {_short(before)} -> {_short(after)}")
    if report.residuals:
        lines.append("  copies that differed, and the relative error left (largest over positions)")
        apart = {divergence.key: divergence.distance for divergence in report.divergences}
        width = max(len(residual.key) for residual in report.residuals)
        for residual in report.residuals:
            lines.append(
                f"    {residual.key:<{width}}  {apart[residual.key]:.3e} -> {residual.worst:.3e}  {residual.choice}"
            )
    if report.kl_divergence is not None:
        lines.append(f"  KL divergence from the untied model: {report.kl_divergence:.3e} nats per token")
    lines += [f"  warning: {warning}" for warning in report.warnings]
    return "\n".join(lines)


def _short(value: object) -> str:
    words = json.dumps(value)
    return words if len(words) <= 60 else words[:57] + "..."
