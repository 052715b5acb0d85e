"""Whether an extraction was good: what texts cost the base, the tuned model, and the base with the adapter."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from zamba_compat.errors import ZambaCompatError
from zamba_compat.extraction.settings import ExtractReport
from zamba_compat.inference.evaluation import Evaluation, evaluate
from zamba_compat.inference.loading import Loaded
from zamba_compat.inference.scoring import Perplexity, perplexity


@dataclasses.dataclass(frozen=True)
class Judgement:
    """Attributes:
    models: the base's and the tuned model's perplexities.
    adapted: text -> perplexity of the base with the adapter.
    """

    models: Evaluation
    adapted: Mapping[str, Perplexity]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        adapted = {name: found.as_dict() for name, found in self.adapted.items()}
        return {**self.models.as_dict(), "adapted": adapted}

    def scores(self) -> list[tuple[str, ...]]:
        """A table: a header, then a row per model."""
        row = ["base + adapter"]
        for found in self.adapted.values():
            row += [f"{found.per_token:.4f}", f"{found.per_byte:.4f}"]
        return [*self.models.scores(), tuple(row)]


def judge(
    report: ExtractReport, texts: Mapping[str, str], *, tell: Callable[[str, str], object] | None = None
) -> Judgement:
    """Judge an adapter that has been written; each model is freed before the next is loaded.

    Args:
        texts: name -> text, see `inference.scoring.perplexity`.
        tell: called with the model and what is done to it.

    Raises:
        ZambaCompatError: a model that cannot be loaded, an empty text, no PEFT.
    """
    models = evaluate((report.base, report.tuned), texts=texts, progress=tell)
    if tell is not None:
        tell(report.destination, "perplexities")
    loaded = adapted(report)
    return Judgement(models, {name: perplexity(loaded, text) for name, text in texts.items()})


def adapted(report: ExtractReport) -> Loaded:
    """The base with the adapter, its tokenizer the base's.

    Raises:
        ZambaCompatError: PEFT is not installed, or the base cannot be loaded.
    """
    from zamba_compat.inference.loading import load
    from zamba_compat.runtime.modules import separate_modules

    peft = require_peft()
    loaded = load(report.base)
    separate_modules(loaded.model)  # either kind of adapter loads so, and none of its names is missing
    return dataclasses.replace(loaded, model=peft.PeftModel.from_pretrained(loaded.model, report.destination).eval())


def require_peft() -> Any:
    """The module. Raises ZambaCompatError where it is not installed."""
    try:
        import peft
    except ImportError as error:
        raise ZambaCompatError(
            f"To judge an adapter PEFT is needed: {error}.", where="--evaluate", remedy="pip install peft"
        ) from error
    return peft
