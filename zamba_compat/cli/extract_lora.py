"""Write a LoRA for PEFT that makes of BASE what TUNED is, as far as a rank holds it.

Each linear weight's difference by its truncated singular value decomposition, matrix by matrix, without building a
model. A shared block has one pair of factors for each weight, an adapter in it one of its own. The checkpoints may be
in any layout that convert-checkpoint reads. OUT appears whole or not at all.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from zamba_compat.cli.counts import counted

from .convert import CHOICES
from .progress import progress, telling
from .upload import asked
from .usage import DTYPES, dtype
from .writing import add_writing, finish

if TYPE_CHECKING:
    from zamba_compat.operations.extract_lora import ExtractReport

EXAMPLES = """
  zamba-compat extract-lora BASE TUNED OUT --rank 64
  zamba-compat extract-lora BASE TUNED OUT --rank 64 --modules-to-save embed_tokens input_layernorm --evaluate text.txt
  zamba-compat extract-lora OWNER/BASE OWNER/TUNED OUT --rank 64 --push OWNER/LORA
  zamba-compat extract-lora BASE TUNED OUT --rank 16 --target-modules mamba --exclude-regex 'layers\\.[0-5]\\.'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("base", metavar="BASE", help="the checkpoint before training")
    add("tuned", metavar="TUNED", help="the one after it")
    add("destination", metavar="OUT", help="the directory to make")
    add("--rank", type=int, required=True, metavar="R", help="of each pair of factors")
    add(
        "--target-modules",
        nargs="+",
        default=[],
        metavar="NAME",
        help="linear modules, or what holds them (in_proj, mamba, self_attn, ...; default: all that may be adapted)",
    )
    add(
        "--modules-to-save",
        "--save-module",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="modules that go into the adapter whole (embed_tokens, input_layernorm, mamba, ...)",
    )
    for option, what in (("--include-regex", "only modules"), ("--exclude-regex", "no modules")):
        add(
            option,
            action="append",
            default=[],
            metavar="REGEX",
            help=f"adapt {what} in whose names it is found; may be given again",
        )
    add(
        "--per-position",
        action="store_true",
        help="factors for every use of a shared block, where TUNED's copies differ (PEFT without share_modules)",
    )
    add("--resolve", choices=CHOICES, default="error", help="copies that differ, as in convert-checkpoint")
    add("--dtype", choices=DTYPES, type=dtype, help="of the factors (default: BASE's)")
    add(
        "--evaluate",
        action="append",
        default=[],
        type=Path,
        metavar="TEXT",
        help="a UTF-8 text: its perplexity by BASE, TUNED, and BASE with the adapter; may be given again",
    )
    add_writing(parser, unknown="leave tensors aside that are no part of the model")


def run(options: argparse.Namespace) -> int:
    from zamba_compat.operations.extract_lora import ExtractOptions, extract_lora

    from .merge import texts_of
    from .usage import usage

    with usage():
        settings = ExtractOptions(
            rank=options.rank,
            target_modules=tuple(options.target_modules),
            modules_to_save=tuple(options.modules_to_save),
            include=tuple(options.include_regex),
            exclude=tuple(options.exclude_regex),
            per_position=options.per_position,
            resolve=options.resolve,
            dtype=options.dtype,
            dry_run=options.dry_run,
            overwrite=options.overwrite,
            allow_unknown=options.allow_unknown,
            allow_pickle=options.allow_pickle,
        )
    texts = texts_of(options)
    if texts:
        from zamba_compat.operations.judge_lora import require_peft

        require_peft()  # before anything is computed
    where = asked(options)
    report = extract_lora(options.base, options.tuned, options.destination, settings, progress=progress(options))
    if not options.json and not options.quiet:
        print(text(report), flush=True)
    found = None
    if texts:
        from zamba_compat.operations.judge_lora import judge

        found = judge(report, texts, tell=telling(options))
    if found is not None and not options.json:
        from .evaluate import table

        print("\n".join(["", *(f"  {line}" for line in table(found.scores()))]))
    return finish(options, where, {**report.as_dict(), "evaluation": found and found.as_dict()})


def text(report: ExtractReport) -> str:
    """What was done, for a person."""
    from zamba_compat.checkpoint.reading.strict_json import listed

    from .evaluate import table

    done = "written" if report.written else "planned, nothing is written"
    one, other = report.layouts
    lines = [
        f"{report.tuned} ({other}) - {report.base} ({one}) -> {report.destination}: {done}",
        f"  rank         {report.options.rank}; {report.matrices} matrices",
        f"  bytes        {report.bytes:,} in {counted(report.tensors, 'tensor')}",
        f"  peak memory  about {report.peak_memory / 1e6:,.0f} MB beyond the libraries and mapped files",
    ]
    if report.modules_to_save:
        lines.append(f"  saved whole  {', '.join(report.modules_to_save)}")
    if report.total is not None:
        rows: list[tuple[str, ...]] = [("part", "of the difference", "kept", "left out")]
        for name, energy in (*report.components.items(), ("all", report.total)):
            part = 100 * energy.total / report.total.total
            rows.append((name, f"{part:.1f}%", energy.share, counted(energy.left, "tensor") if energy.left else ""))
        lines += ["", *(f"  {line}" for line in table(rows)), "  (sums of squared singular values)"]
    if report.left:
        lines.append(f"  not carried: {len(report.left)} tensors that differ, {listed(list(report.left), 3)}")
    if report.words:
        lines.append(
            f"  to carry them too: --modules-to-save {' '.join((*report.options.modules_to_save, *report.words))}"
        )
    lines += [f"  warning: {warning}" for warning in report.warnings]
    return "\n".join(lines)
