"""Merge checkpoints by mergekit's configuration, shared blocks understood, streamed and all at once."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from zamba_compat.checkpoint.progress import Progress, counting
from zamba_compat.checkpoint.writing.manifest import write_manifest
from zamba_compat.checkpoint.writing.pipeline import QUEUED, WORKING_MEMORY
from zamba_compat.checkpoint.writing.staging import Staging, begun
from zamba_compat.checkpoint.writing.writer import BEGUN, Output, Written, parse_size, shard_sizes, write_shards
from zamba_compat.errors import CheckpointError
from zamba_compat.merging.card import merge_card
from zamba_compat.merging.companions import Companions, choose
from zamba_compat.merging.config import MergeConfig
from zamba_compat.merging.parents import Parents, read_parent
from zamba_compat.merging.plan import MergePlan, make_plan
from zamba_compat.merging.reading import read_merge_config
from zamba_compat.merging.report import MergeOptions, MergeReport, grouped
from zamba_compat.merging.workers import PIECE, Workers
from zamba_compat.operations.quantize import Quantization, peak_memory, plan, quantized

__all__ = ["MergeConfig", "MergeOptions", "MergeReport", "merge"]

_CARD, _CONFIG = "README.md", "mergekit_config.yml"
_OPTIONS_OF_THE_RUN = ("dry_run", "overwrite", "allow_pickle")


def merge(
    config: object,
    destination: str | Path,
    options: MergeOptions | None = None,
    *,
    progress: Progress | None = None,
) -> MergeReport:
    """Merge checkpoints. Prints nothing.

    The result is in the hub layout, whatever the parents are in, and has the base model's architecture and config.
    Nothing appears at `destination` before all of it is there; a failure leaves what was there before.

    Args:
        config: the path of a configuration in mergekit's YAML, what such a file holds, or a `MergeConfig`. Relative
            paths of models are looked up from the working directory, as mergekit does.
        destination: the directory to make.
        options: how.
        progress: makes what shows progress.

    Raises:
        ConfigError: a configuration that is unreadable, unsafe or contradicts itself or the parents.
        DivergentCopiesError: a parent's copies of one tensor differ, and nothing says what becomes of them.
        CheckpointError: anything else that is wrong with a parent, parents that do not fit each other, NaN or infinity.
        DestinationError: a destination that cannot be written.
    """
    options = options or MergeOptions()
    merging = read_merge_config(config)
    with ExitStack() as stack:
        parents = stack.enter_context(Parents())
        checkpoints = parents.open(merging.models, allow_pickle=options.allow_pickle)
        # Before any tensor is read: a destination that will not do is told at once.
        roots = [root for checkpoint in checkpoints for root in checkpoint.roots]
        staging = begun(stack, destination, overwrite=options.overwrite, sources=roots, dry_run=options.dry_run)
        choice = options.resolve or merging.resolve
        parents.parents = tuple(
            read_parent(
                model, number, checkpoint, choice=choice, allow_unknown=options.allow_unknown, progress=progress
            )
            for number, (model, checkpoint) in enumerate(zip(merging.models, checkpoints, strict=True))
        )
        workers = stack.enter_context(Workers())
        planned = make_plan(merging, parents, workers, options.dtype or merging.dtype, options.random_seed)
        companions = choose(merging, parents)
        quantization = _quantization(planned, parents, merging, options)
        outputs: Sequence[Output] = planned.outputs
        if quantization is not None:
            outputs = quantization.announced(planned.outputs)
            planned.config["quantization_config"] = dict(quantization.words)
        if staging is not None:
            name = Path(destination).name
            written = _write(staging, planned, parents, merging, companions, quantization, options, progress, name)
            outputs = written.outputs
            for checkpoint in checkpoints:
                checkpoint.verify_unchanged()
            staging.commit()
        return _report(destination, merging, options, parents, planned, companions, outputs, quantization)


def _quantization(
    planned: MergePlan, parents: Parents, merging: MergeConfig, options: MergeOptions
) -> Quantization | None:
    if options.quantize is None:
        return None
    base = parents[merging.base_model]
    if base.contents is None:
        raise CheckpointError(
            f"A {base.architecture} model is not quantized here.",
            where=base.where,
            remedy="Leave --quantize out and quantize the result with transformers.",
        )
    return plan(planned.outputs, planned.config, base.contents, options.as_conversion())


def _write(
    staging: Staging,
    planned: MergePlan,
    parents: Parents,
    merging: MergeConfig,
    companions: Companions,
    quantization: Quantization | None,
    options: MergeOptions,
    progress: Progress | None,
    name: str,
) -> Written:
    with (
        quantized(planned.outputs, quantization, parents, staging, progress) as (outputs, find),
        counting(progress, "merging", sum(output.nbytes for output in outputs)) as update,
    ):
        written = write_shards(
            staging,
            outputs,
            parents.read,
            max_shard_size=parse_size(options.max_shard_size),
            progress=update,
            stored_bytes=find,
        )
    if written.nonfinite:
        raise CheckpointError(
            "NaN or infinity came of it.",
            where=", ".join(written.nonfinite),
            remedy="Look for them in the parents; numbers that float16 does not hold want dtype: bfloat16.",
        )
    staging.write("config.json", json.dumps(planned.config, indent=2, sort_keys=True) + "\n")
    for file, path in companions.copied.items():
        staging.copy(path, file)
    for file, text in companions.written.items():
        staging.write(file, text)
    more = [] if quantization is None else [quantization.sentence]
    staging.write(_CARD, merge_card(merging, parents, name, more))
    staging.write(_CONFIG, merging.text)
    asked = {key: value for key, value in dataclasses.asdict(options).items() if key not in _OPTIONS_OF_THE_RUN}
    asked |= {} if quantization is None else quantization.made_by
    sources = [parent.checkpoint.identity for parent in parents]
    write_manifest(staging, written, sources=sources, options={"command": "merge", "config": merging.text, **asked})
    return written


def _report(
    destination: str | Path,
    merging: MergeConfig,
    options: MergeOptions,
    parents: Parents,
    planned: MergePlan,
    companions: Companions,
    outputs: Sequence[Output],
    quantization: Quantization | None,
) -> MergeReport:
    fallbacks: dict[str, dict[str, int]] = {}
    for name, blend in planned.blends.items():
        for what, count in blend.fallbacks.items():
            fallbacks.setdefault(what, {})[name] = count
    own = (f"{parent.model}: {note}" for parent in parents for note in parent.notes)
    return MergeReport(
        destination=str(destination),
        method=merging.method,
        base_model=merging.base_model,
        models=merging.models,
        shared=merging.shared,
        options=options,
        written=not options.dry_run,
        layouts={parent.model: "" if parent.contents is None else parent.contents.layout for parent in parents},
        tensors=len(outputs),
        bytes=sum(output.nbytes for output in outputs),
        merged=len(planned.blends),
        copied=len(planned.outputs) - len(planned.blends),
        kept=tuple(decision.name for decision in planned.decisions if decision.values is None),
        groups=grouped(planned.decisions),
        fallbacks=fallbacks,
        tokenizer_of=companions.tokenizer_of,
        shards=shard_sizes(outputs, parse_size(options.max_shard_size)),
        peak_memory=_peak_memory(planned, quantization),
        warnings=(*own, *merging.notes, *planned.notes, *companions.notes),
    )


def _peak_memory(planned: MergePlan, quantization: Quantization | None) -> int:
    """An estimate, bytes: pieces in work and waiting, tensors that a parent's layout makes, what quantizing holds."""
    largest, whole, quantizing = 0, 0, []
    for output in planned.outputs:
        blend = planned.blends.get(output.name)
        if blend is not None:
            largest = max(largest, blend.memory + QUEUED * 4 * PIECE + BEGUN)
            made = sum(make is not None for _, make in blend.parts)
            whole = max(whole, 2 * made * (2 * output.nbytes + BEGUN))  # the next ones' are made while this is written
        if quantization is not None and output.name in quantization.names:
            quantizing.append(output)
            whole = max(whole, output.nbytes)
    return WORKING_MEMORY + largest + whole + peak_memory(quantizing)
