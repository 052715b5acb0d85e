"""Convert a checkpoint from any layout of Zamba2 to another, streamed and all at once."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zamba_compat.checkpoint.dtypes import DTYPES
from zamba_compat.checkpoint.layouts import contents as layouts
from zamba_compat.checkpoint.layouts.other_formats import refuse_pickled, renamed_header
from zamba_compat.checkpoint.progress import Progress, counting
from zamba_compat.checkpoint.reading.opening import open_checkpoint
from zamba_compat.checkpoint.resolving.casting import cast
from zamba_compat.checkpoint.resolving.quantization import refuse_nonfinite
from zamba_compat.checkpoint.resolving.resolve import Resolution, resolve
from zamba_compat.checkpoint.writing.card import steps, with_conversion
from zamba_compat.checkpoint.writing.manifest import write_manifest
from zamba_compat.checkpoint.writing.pipeline import WORKING_MEMORY
from zamba_compat.checkpoint.writing.report import UNQUANTIZED, Options, Report
from zamba_compat.checkpoint.writing.signals import interruptible
from zamba_compat.checkpoint.writing.staging import Staging, begun
from zamba_compat.checkpoint.writing.torch_archive import NAME, write_archive
from zamba_compat.checkpoint.writing.writer import Output, Written, parse_size, shard_sizes, write_shards
from zamba_compat.operations.calibrate import kl_divergence, read_text
from zamba_compat.operations.quantize import Quantization, check, peak_memory, plan, quantized

__all__ = ["DTYPES", "Conversion", "Options", "Report", "convert", "prepare"]

if TYPE_CHECKING:
    from zamba_compat.checkpoint.reading.opening import Checkpoint

_CARD = "README.md"


@dataclass(frozen=True)
class Conversion:
    """Everything decided, nothing written.

    Attributes:
        options: what was asked for.
        resolution: the source, its copies made one.
        config: config.json of the output.
        outputs: the tensors of the output, in the order to write them, before they are quantized.
        quantization: what is quantized of them.
        notes: what a person should hear.
    """

    options: Options
    resolution: Resolution
    config: dict[str, Any]
    outputs: tuple[Output, ...]
    quantization: Quantization | None
    notes: tuple[str, ...]

    @property
    def layout(self) -> str:
        """The source's."""
        layout = self.resolution.contents.layout
        return "divergent" if self.resolution.divergences and layout in ("expanded", "partial") else layout

    @property
    def nbytes(self) -> int:
        """Of all tensors of the output."""
        return sum(output.nbytes for output in self.planned)

    @property
    def planned(self) -> tuple[Output, ...]:
        """The tensors that are written; quantized, their sizes may be a few bytes off."""
        return self.outputs if self.quantization is None else self.quantization.announced(self.outputs)

    @property
    def peak_memory(self) -> int:
        """See `Report`. What is computed is held whole, beside one more tensor of its size at most."""
        made = [output for output in self.outputs if output.recipe.make is not None]
        held = sum(output.nbytes for output in made if not output.recipe.sources)
        largest = 2 * max((output.nbytes for output in made), default=0)
        gram = 3 * 8 * (2 * int(self.config["hidden_size"])) ** 2 if held else 0
        names = self.quantization.names if self.quantization is not None else ()
        quantizing = peak_memory([output for output in self.outputs if output.name in names], self.quantization)
        return WORKING_MEMORY + held + max(largest + quantizing, gram)


def prepare(checkpoint: Checkpoint, options: Options, progress: Progress | None = None) -> Conversion:
    """Check a checkpoint, compare its copies, and say how each tensor of the output is made.

    Raises:
        ZambaCompatError: see `convert`.
    """
    contents = layouts.read_contents(
        checkpoint, allow_unknown=options.allow_unknown, keep_unused=options.keep_unused_adapters
    )
    check(contents, options)
    if options.is_pickled:
        refuse_pickled(contents.tensors, contents.where)
    choice = options.resolve
    if choice == "error" and options.layout == "untied":
        choice = "untie"
    resolution = resolve(contents, choice, adapter_rank=options.adapter_rank, progress=progress)
    config, recipes = layouts.arrange(options.layout, resolution.hub, resolution.whole_config, contents)
    config, recipes = cast(config, recipes, contents, options.dtype)
    made = layouts.outcomes(recipes, checkpoint.tensors)
    outputs = tuple(Output(name, made[name].dtype, made[name].shape, recipe) for name, recipe in recipes.items())
    quantization = plan(outputs, config, contents, options)
    if quantization is not None:
        config = {**config, "quantization_config": dict(quantization.words)}
    notes = (*checkpoint.warnings, *contents.notes, *resolution.notes)
    return Conversion(options, resolution, config, outputs, quantization, notes)


def convert(
    source: str | Path,
    destination: str | Path,
    options: Options | None = None,
    *,
    progress: Progress | None = None,
) -> Report:
    """Convert a checkpoint. Prints nothing.

    Nothing appears at `destination` before all of it is there; a failure leaves what was there before.

    Args:
        source: a directory, an index, a single file, or a name on the hub.
        destination: the directory to make.
        options: how; without them the hub layout, and copies that differ are refused.
        progress: makes what shows progress.

    Raises:
        ConfigError: a config that describes no Zamba or Zamba2 model, or contradicts itself.
        MissingTensorError: a tensor of which no copy is stored.
        DivergentCopiesError: copies that differ, and options.resolve is "error".
        CheckpointError: anything else that is wrong with the source.
        DestinationError: a destination that cannot be written.
    """
    options = options or Options()
    text = None if options.calibrate is None else read_text(options.calibrate)
    with ExitStack() as stack:
        checkpoint = stack.enter_context(open_checkpoint(source, allow_pickle=options.allow_pickle))
        # Before any tensor is read: a destination that will not do is told at once.
        roots = checkpoint.roots
        staging = begun(stack, destination, overwrite=options.overwrite, sources=roots, dry_run=options.dry_run)
        conversion = prepare(checkpoint, options, progress)
        warnings = list(conversion.notes)
        if staging is not None:
            written = _write(conversion, staging, progress)
        divergence = None
        if text is not None:
            loadable = not (options.layout.startswith("zyphra") or options.is_pickled)
            made = staging.path if staging is not None and loadable else None
            divergence = _calibrate(source, Path(destination), options, text, made)
        if staging is not None:
            checkpoint.verify_unchanged()
            staging.commit()
            if written.nonfinite:
                warnings.append(f"NaN or infinity in {len(written.nonfinite)} tensors: {', '.join(written.nonfinite)}")
        outputs = conversion.planned if staging is None else written.outputs
        before = checkpoint.config
        return Report(
            source=str(source),
            destination=str(destination),
            source_layout=conversion.layout,
            options=options,
            written=staging is not None,
            tensors_stored=len(checkpoint.tensors),
            tensors=len(outputs),
            bytes_stored=sum(info.nbytes for info in checkpoint.tensors.values()),
            bytes=sum(output.nbytes for output in outputs),
            divergences=conversion.resolution.divergences,
            residuals=conversion.resolution.residuals,
            config=_changes(before, conversion.config),
            unknown=conversion.resolution.contents.unknown,
            shards=_shards(outputs, options),
            peak_memory=conversion.peak_memory,
            warnings=tuple(warnings),
            kl_divergence=divergence,
        )


def _write(conversion: Conversion, staging: Staging, progress: Progress | None) -> Written:
    options, quantization = conversion.options, conversion.quantization
    checkpoint = conversion.resolution.contents.opened
    with (
        quantized(conversion.outputs, quantization, checkpoint, staging, progress) as (outputs, find),
        counting(progress, "writing", sum(output.nbytes for output in outputs)) as update,
    ):
        if options.is_pickled:
            written = write_archive(staging, outputs, checkpoint.read, progress=update)
        else:
            sources = [(output.name, source) for output in outputs for source in output.recipe.sources[:1]]
            written = write_shards(
                staging,
                outputs,
                checkpoint.read,
                max_shard_size=parse_size(options.max_shard_size),
                metadata=renamed_header(checkpoint.metadata, sources),
                progress=update,
                stored_bytes=find,
            )
    if quantization is not None and written.nonfinite:
        raise refuse_nonfinite(written.nonfinite)
    staging.write("config.json", json.dumps(conversion.config, indent=2, sort_keys=True) + "\n")
    card = ""
    for path in checkpoint.companions:
        if path.name == _CARD:
            card = path.read_text(encoding="utf-8", errors="surrogateescape")
        else:
            staging.copy(path, str(path.relative_to(checkpoint.path)))
    done = steps(
        conversion.layout, options.layout, conversion.resolution, _changes(checkpoint.config, conversion.config)
    )
    if quantization is not None:
        done.append(quantization.sentence)
    staging.write(_CARD, with_conversion(card, done).encode("utf-8", errors="surrogateescape"))
    asked = {key: value for key, value in dataclasses.asdict(options).items() if key not in ("dry_run", "overwrite")}
    asked |= {} if quantization is None else quantization.made_by
    write_manifest(staging, written, sources=[checkpoint.identity], options={"command": "convert-checkpoint", **asked})
    return written


def _shards(outputs: Sequence[Output], options: Options) -> dict[str, int]:
    """File of weights -> bytes of tensors in it."""
    if options.is_pickled:
        return {NAME: sum(output.nbytes for output in outputs)}
    return shard_sizes(outputs, parse_size(options.max_shard_size))


def _calibrate(source: str | Path, destination: Path, options: Options, text: str, made: Path | None) -> float:
    """KL divergence of the output from the untied model; `made` is the output where transformers can load it."""
    plain = dataclasses.replace(options, layout="hub", format=None, dry_run=False, calibrate=None)
    parent = Path(os.path.realpath(destination)).parent
    beside = parent if parent.is_dir() else None  # a dry run makes no directory
    with interruptible(), tempfile.TemporaryDirectory(prefix=".calibrate-", dir=beside) as directory:
        untied = Path(directory, "untied")
        convert(
            source, untied, dataclasses.replace(plain, resolve="untie", adapter_rank=None, dtype=None, **UNQUANTIZED)
        )
        if made is None:
            made = Path(directory, "made")
            convert(source, made, plain)
        return kl_divergence(untied, made, text)


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    keys = [*before, *(key for key in after if key not in before)]
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}
