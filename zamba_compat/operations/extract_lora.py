"""Extract a LoRA from two checkpoints: what makes the tuned one of the base, matrix by matrix; no model is built."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from zamba_compat.checkpoint.dtypes import bytes_of, to_torch
from zamba_compat.checkpoint.layouts.components import COMPONENTS, OTHER, component_of
from zamba_compat.checkpoint.progress import Progress, counting
from zamba_compat.checkpoint.reading.files import write_all
from zamba_compat.checkpoint.reading.stored import StoredBytes
from zamba_compat.checkpoint.reading.strict_json import listed
from zamba_compat.checkpoint.recipe import Recipe
from zamba_compat.checkpoint.writing.manifest import write_manifest
from zamba_compat.checkpoint.writing.pipeline import WORKING_MEMORY
from zamba_compat.checkpoint.writing.staging import Staging, begun
from zamba_compat.checkpoint.writing.writer import Output, write_shards
from zamba_compat.errors import CheckpointError
from zamba_compat.extraction.factors import Factors, factorize, memory
from zamba_compat.extraction.files import adapter_config, card, ranks, target_modules
from zamba_compat.extraction.plan import (
    PREFIX,
    Difference,
    ExtractPlan,
    announced,
    dtype_of,
    factor_names,
    make_plan,
    saved_places,
    words_for,
)
from zamba_compat.extraction.settings import Energy, ExtractOptions, ExtractReport
from zamba_compat.layout.copies import squares
from zamba_compat.merging.parents import Parent, Parents, read_parent
from zamba_compat.merging.plan import compare_configs

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Energy", "ExtractOptions", "ExtractReport", "extract_lora"]

_STEM, _CARD, _CONFIG = "adapter_model", "README.md", "adapter_config.json"
_SCRATCH = ".factors"
_ONE_FILE = 2**62  # bytes; PEFT reads no shards
_OPTIONS_OF_THE_RUN = ("dry_run", "overwrite", "allow_pickle")


def extract_lora(
    base: str | Path,
    tuned: str | Path,
    destination: str | Path,
    options: ExtractOptions,
    *,
    progress: Progress | None = None,
) -> ExtractReport:
    """Write an adapter for PEFT that makes of `base` what `tuned` is, as far as a rank holds it. Prints nothing.

    The best approximation of each weight's difference (see `extraction.factors.factorize`), scaled so that
    lora_alpha = r. Nothing appears at `destination` before all of it is there; a failure leaves what was there before.

    Args:
        base, tuned: checkpoints of one shape, in any layout; see `convert`.
        destination: the directory to make.
        options: how.
        progress: makes what shows progress.

    Raises:
        ConfigError: words that match no module; a config that describes no Zamba or Zamba2 model.
        DivergentCopiesError: copies of one tensor differ, and nothing says what becomes of them.
        CheckpointError: checkpoints that do not fit each other, or do not differ; anything else wrong with one of them.
        DestinationError: a destination that cannot be written.
    """
    models = (str(base), str(tuned))
    with ExitStack() as stack:
        parents = stack.enter_context(Parents())
        checkpoints = parents.open(models, allow_pickle=options.allow_pickle)
        # Before any tensor is read: a destination that will not do is told at once.
        roots = [root for checkpoint in checkpoints for root in checkpoint.roots]
        staging = begun(stack, destination, overwrite=options.overwrite, sources=roots, dry_run=options.dry_run)
        apart = "untie" if options.per_position else options.resolve
        parents.parents = tuple(
            read_parent(
                model, number, checkpoint, choice=choice, allow_unknown=options.allow_unknown, progress=progress
            )
            for number, (model, checkpoint, choice) in enumerate(
                zip(models, checkpoints, (options.resolve, apart), strict=True)
            )
        )
        one, other = parents.parents
        plan = make_plan(one, other, options)
        notes = (*(f"{parent.model}: {note}" for parent in parents for note in parent.notes),)
        notes += tuple(compare_configs(one, other))
        if staging is None:
            return _report(models, destination, options, parents, plan, None, announced(plan, options), notes)
        extraction = _Extraction(parents, plan, options, staging, progress)
        extraction.run(models[0], Path(destination).name)
        for checkpoint in checkpoints:
            checkpoint.verify_unchanged()
        staging.commit()
        return _report(models, destination, options, parents, plan, extraction, extraction.outputs, notes)


class _Extraction:
    """Everything that is computed and written."""

    def __init__(
        self, parents: Parents, plan: ExtractPlan, options: ExtractOptions, staging: Staging, progress: Progress | None
    ) -> None:
        self._parents, self._plan, self._options = parents, plan, options
        self._staging, self._progress = staging, progress
        self._places: dict[str, StoredBytes] = {}
        self.adapted: list[Difference] = []
        self.left: list[str] = []
        self.outputs: tuple[Output, ...] = ()
        self._sums: dict[str, list[float]] = {name: [0.0, 0.0, 0.0, 0] for name in (*COMPONENTS, OTHER)}

    def run(self, base: str, name: str) -> None:
        plan, rank = self._plan, self._options.rank
        outputs: list[Output] = []
        tensors = (*plan.matrices, *plan.saved, *plan.others)
        path = self._staging.path / _SCRATCH
        self._staging.require(sum(output.nbytes for output in announced(plan, self._options)) * 2)
        with (
            self._staging.create(_SCRATCH) as file,
            counting(self._progress, "factorizing", sum(one.info.nbytes for one in tensors)) as update,
        ):
            for one in plan.matrices:
                outputs += self._factors(one, file, path)
                update(one.info.nbytes)
            for one in (*plan.saved, *plan.others):
                self._compare(one, saved=one in plan.saved)
                update(one.info.nbytes)
        if not self.total.total:
            raise self._equal()
        if not self.adapted:
            raise self._nothing_to_adapt()
        adapted = {one.name for one in self.adapted}
        outputs = [output for output in outputs if output.recipe.sources[0].partition(":")[2] in adapted]
        outputs += [
            Output(PREFIX + place, one.tuned.dtype or one.info.dtype, one.info.shape, one.tuned)
            for one in plan.saved
            for place in saved_places(one, self._base, plan.modules_to_save)
        ]
        with counting(self._progress, "writing", sum(output.nbytes for output in outputs)) as update:
            written = write_shards(
                self._staging,
                outputs,
                self._parents.read,
                max_shard_size=_ONE_FILE,
                progress=update,
                stored_bytes=self._find,
                stem=_STEM,
            )
        path.unlink()
        if written.nonfinite:
            raise CheckpointError(
                "NaN or infinity came of it.",
                where=listed(list(written.nonfinite)),
                remedy="Look for them in the checkpoints with zamba-compat inspect --values.",
            )
        self.outputs = written.outputs
        config = adapter_config(base, self._base, rank, self.targets, plan.modules_to_save, ranks(self.adapted, rank))
        self._staging.write(_CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
        before, after = self._parents.parents
        text = card(before, after, self._options, name, self.components, self.total, self.left)
        self._staging.write(_CARD, text)
        asked = {k: v for k, v in dataclasses.asdict(self._options).items() if k not in _OPTIONS_OF_THE_RUN}
        sources = [parent.checkpoint.identity for parent in self._parents]
        write_manifest(self._staging, written, sources=sources, options={"command": "extract-lora", **asked})

    @property
    def _base(self) -> Parent:
        return self._parents.parents[0]

    @property
    def targets(self) -> tuple[str, ...]:
        plan = self._plan
        return target_modules(self.adapted, (*plan.matrices, *plan.saved, *plan.others))

    @property
    def components(self) -> dict[str, Energy]:
        return {name: Energy(a, b, c, int(d)) for name, (a, b, c, d) in self._sums.items() if a}

    @property
    def total(self) -> Energy:
        a, b, c, d = (sum(column) for column in zip(*self._sums.values(), strict=True))
        return Energy(a, b, c, int(d))

    def _factors(self, one: Difference, file: BinaryIO, path: Path) -> list[Output]:
        """Factorize a difference into the file, and say under which names its factors are written."""
        before, after = one.base.made(self._parents.read), one.tuned.made(self._parents.read)
        rank = min(self._options.rank, *one.info.shape)
        found = factorize(before, after, rank, where=one.name)
        sums = self._sums[component_of(one.name)]
        sums[0] += found.total
        sums[1] += found.kept
        if found.total:
            self.adapted.append(one)
        dtype = dtype_of(one, self._options)
        return [
            Output(PREFIX + place, dtype, shape, Recipe((source,)))
            for end, tensor in _named(found)
            for shape, source in [self._keep(one.name, end, tensor, dtype, file, path)]
            for place in factor_names(one, end)
        ]

    def _keep(
        self, name: str, end: str, tensor: Tensor, dtype: str, file: BinaryIO, path: Path
    ) -> tuple[tuple[int, ...], str]:
        data = bytes_of(tensor.to(to_torch(dtype)))
        source = f"{end}:{name}"
        self._places[source] = StoredBytes(path, file.tell(), len(data))
        write_all(file.fileno(), data)
        return tuple(tensor.shape), source

    def _find(self, source: str) -> StoredBytes | None:
        return self._places[source] if source in self._places else self._parents.stored_bytes(source)

    def _compare(self, one: Difference, *, saved: bool) -> None:
        before, after = one.base.made(self._parents.read), one.tuned.made(self._parents.read)
        moved, _ = squares(before, after)
        sums = self._sums[component_of(one.name)]
        sums[0] += moved
        sums[2] += moved if saved else 0.0
        if moved and not saved:
            sums[3] += 1
            self.left.append(one.name)

    def _equal(self) -> CheckpointError:
        return CheckpointError(
            "The two checkpoints are equal: there is no difference to extract.",
            where=" and ".join(parent.model for parent in self._parents),
            remedy="Give the checkpoint before and the one after training.",
        )

    def _nothing_to_adapt(self) -> CheckpointError:
        return CheckpointError(
            f"None of the modules to adapt differs; {len(self.left)} other tensors do: {listed(self.left)}.",
            where=" and ".join(parent.model for parent in self._parents),
            remedy="Choose other modules, or copy those tensors yourself: a LoRA cannot hold them.",
        )


def _named(found: Factors) -> Iterable[tuple[str, Tensor]]:
    return (("lora_A", found.down), ("lora_B", found.up))


def _report(
    models: tuple[str, str],
    destination: str | Path,
    options: ExtractOptions,
    parents: Parents,
    plan: ExtractPlan,
    done: _Extraction | None,
    outputs: Sequence[Output],
    notes: tuple[str, ...],
) -> ExtractReport:
    adapted = plan.matrices if done is None else tuple(done.adapted)
    left = () if done is None else tuple(done.left)
    components: Mapping[str, Energy] = {} if done is None else done.components
    one, other = ("" if parent.contents is None else parent.contents.layout for parent in parents)
    held = max(memory(m.info.shape, min(options.rank, *m.info.shape)) for m in plan.matrices)
    made = [4 * m.info.nbytes for m in (*plan.matrices, *plan.saved, *plan.others) if m.base.make or m.tuned.make]
    return ExtractReport(
        base=models[0],
        tuned=models[1],
        destination=str(destination),
        layouts=(one, other),
        options=options,
        written=done is not None,
        matrices=len(adapted),
        tensors=len(outputs),
        bytes=sum(output.nbytes for output in outputs),
        target_modules=target_modules(adapted, (*plan.matrices, *plan.saved, *plan.others)),
        modules_to_save=plan.modules_to_save,
        ranks=ranks(adapted, options.rank),
        components=components,
        total=None if done is None else done.total,
        left=left,
        words=words_for(left),
        peak_memory=WORKING_MEMORY + held + max(made, default=0),
        warnings=notes,
    )
