"""Whether a merge was good: what texts cost the parents and the result, and how far it lies from each of them."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from zamba_compat.checkpoint.progress import Progress
from zamba_compat.inference.evaluation import Evaluation, evaluate
from zamba_compat.merging.report import MergeReport

from .inspect import inspect


@dataclass(frozen=True)
class Judgement:
    """Attributes:
    perplexities: of every parent, the base first, and of the result.
    distances: component -> parent -> ||result - parent|| / ||parent|| over its tensors; None: nothing was compared.
    commands: that look closer.
    """

    perplexities: Evaluation
    distances: Mapping[str, Mapping[str, float | None]]
    commands: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**dataclasses.asdict(self), "perplexities": self.perplexities.as_dict()["models"]}


def judge(
    report: MergeReport,
    texts: Mapping[str, str],
    files: tuple[str, ...] = (),
    *,
    progress: Progress | None = None,
    tell: Callable[[str, str], object] | None = None,
) -> Judgement:
    """Judge a merge that has been written; each model is freed before the next is loaded.

    Args:
        texts: name -> text, see `inference.scoring.perplexity`.
        files: where the texts are, for the commands.
        progress: makes what shows progress of comparing.
        tell: called with the model and what is done to it.

    Raises:
        ZambaCompatError: a model that cannot be loaded or compared, an empty text.
    """
    models = (*report.models, report.destination)
    found = evaluate(models, texts=texts, progress=tell)
    distances: dict[str, dict[str, float | None]] = {}
    for parent in report.models:
        comparison = inspect(parent, report.destination, progress=progress).comparison
        assert comparison is not None
        for name, apart in (*comparison.components.items(), ("all", comparison.total)):
            distances.setdefault(name, {})[parent] = apart.distance
    out = shlex.quote(report.destination)
    commands = [f"zamba-compat inspect {shlex.quote(parent)} {out} --tensors" for parent in report.models]
    asked = " ".join(f"--text {shlex.quote(file)}" for file in files)
    commands.append(f"zamba-compat evaluate {' '.join(map(shlex.quote, models))} {asked} --questions")
    commands.append(f"zamba-compat generate {out} TEXT")
    return Judgement(found, distances, tuple(commands))
