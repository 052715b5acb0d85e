"""Several models judged side by side, each freed before the next is loaded."""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zamba_compat.errors import ZambaCompatError

from . import processes
from .loading import Loading, load, peak_memory
from .questions import MOST_TOKENS, Answered, Question, ask
from .scoring import WINDOW, Perplexity, perplexity


@dataclass(frozen=True)
class Evaluated:
    """One model.

    Attributes:
        model: as given, with the ablation in brackets.
        perplexities: text's name -> perplexity.
        answers: to each question; empty where none were asked.
        bytes: that its parameters and buffers hold, each storage once.
        load_seconds, seconds: to load, and to judge.
        peak_memory: bytes, of this process so far.
    """

    model: str
    perplexities: Mapping[str, Perplexity]
    answers: Sequence[Answered]
    bytes: int
    load_seconds: float
    seconds: float
    peak_memory: int

    @property
    def correct(self) -> int:
        """Right answers."""
        return sum(answer.correct for answer in self.answers)


@dataclass(frozen=True)
class Evaluation:
    """Attributes: the models, in the order given."""

    models: Sequence[Evaluated]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"models": [_plain(one) for one in self.models]}

    def scores(self) -> list[tuple[str, ...]]:
        """A table of what does not depend on the machine: a header, then a row per model."""
        texts = list(self.models[0].perplexities) if self.models else []
        asked = bool(self.models and self.models[0].answers)
        header = ["model", *(f"{text}, {per}" for text in texts for per in ("per token", "per byte"))]
        rows = [tuple(header + (["questions"] if asked else []))]
        for one in self.models:
            row = [one.model]
            for found in one.perplexities.values():
                row += [f"{found.per_token:.4f}", f"{found.per_byte:.4f}"]
            rows.append(tuple(row + ([f"{one.correct} of {len(one.answers)}"] if asked else [])))
        return rows


def evaluate(
    models: Sequence[str],
    how: Loading | None = None,
    *,
    texts: Mapping[str, str] | None = None,
    questions: Sequence[Question] = (),
    window: int = WINDOW,
    stride: int | None = None,
    max_new_tokens: int = MOST_TOKENS,
    progress: Callable[[str, str], object] | None = None,
    ablate: Sequence[str] = (),
) -> Evaluation:
    """Judge models by the perplexity of texts and by questions.

    Under `accelerate launch` windows and questions are split over the processes, and every one returns the same.

    Args:
        models: directories, or names on the hub.
        how: to load each.
        texts: name -> text.
        questions: to ask.
        window, stride: see `scoring.perplexity`.
        max_new_tokens: of an answer.
        progress: called with the model and what is done to it.
        ablate: each model is judged as it is, and again without each of these parts; see `ablations.check`.

    Raises:
        ZambaCompatError: nothing to judge by; a model that cannot be loaded.
    """
    if not texts and not questions:
        raise ZambaCompatError("There is nothing to judge by.", remedy="Give a --text, or ask the --questions.")
    how = how or Loading()
    how = dataclasses.replace(how, device=processes.local_device(how.device))
    ways = [how, *(dataclasses.replace(how, ablate=part) for part in ablate)]
    tell = progress or (lambda model, what: None)
    with processes.group():
        return Evaluation(
            [
                _one(model, way, texts or {}, list(questions), window, stride, max_new_tokens, tell)
                for model in models
                for way in ways
            ]
        )


def _one(
    model: str,
    how: Loading,
    texts: Mapping[str, str],
    questions: list[Question],
    window: int,
    stride: int | None,
    max_new_tokens: int,
    tell: Callable[[str, str], object],
) -> Evaluated:
    path, model = model, model if how.ablate is None else f"{model} ({how.ablate})"
    tell(model, "loading")
    loaded = load(path, how)
    start = time.perf_counter()
    perplexities = {}
    for name, text in texts.items():
        tell(model, f"perplexity of {name}")
        perplexities[name] = perplexity(loaded, text, window=window, stride=stride)
    if questions:
        tell(model, f"{len(questions)} questions")
    answers = ask(loaded, questions, max_new_tokens=max_new_tokens) if questions else []
    result = Evaluated(
        model=model,
        perplexities=perplexities,
        answers=answers,
        bytes=held_bytes(loaded.model),
        load_seconds=loaded.seconds,
        seconds=time.perf_counter() - start,
        peak_memory=peak_memory(loaded.device),
    )
    del loaded
    _free()
    return result


def held_bytes(model: Any) -> int:
    """Bytes of a model's parameters and buffers, each storage once; quant states are not counted."""
    storages = {}
    for tensor in (*model.parameters(), *model.buffers()):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _plain(one: Evaluated) -> dict[str, Any]:
    return {
        **dataclasses.asdict(one),
        "perplexities": {name: found.as_dict() for name, found in one.perplexities.items()},
        "correct": one.correct,
        "asked": len(one.answers),
    }
