"""Where an answer ends besides at an end token: before a text that was asked for; and where no number comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from zamba_compat.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from .loading import Loaded


def cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first of `stops` in it."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


class Held:
    """Hands pieces of a text on once no stop can begin in them, and nothing from a stop on."""

    def __init__(self, stream: Callable[[str], object], stops: Sequence[str]) -> None:
        self._stream, self._stops = stream, stops
        self._kept, self._over = "", False

    def __call__(self, piece: str) -> None:
        if self._over:
            return
        text = self._kept + piece
        before = cut(text, self._stops)
        self._over = len(before) < len(text)
        begun = 0 if self._over else max((_begun(text, stop) for stop in self._stops), default=0)
        self._kept = text[len(text) - begun :]
        self._say(before[: len(before) - begun])

    def end(self) -> None:
        """What was held back is no stop after all."""
        self._say(self._kept)
        self._kept, self._over = "", True

    def _say(self, text: str) -> None:
        if text:
            self._stream(text)


def words(loaded: Loaded, stops: Sequence[str], start: int) -> dict[str, Any]:
    """The arguments of `generate` that end an answer at a stop, and refuse logits that are NaN.

    Args:
        loaded: the model.
        stops: texts, none of them empty.
        start: the first new token's index.
    """
    found: dict[str, Any] = {"logits_processor": [_Numbers(loaded.name)]}
    if stops:
        found["stopping_criteria"] = [_Stops(loaded.tokenizer, stops, start)]
    return found


def tokens_until(tokenizer: Any, tokens: Sequence[int], stops: Sequence[str]) -> int | None:
    """How many of an answer's tokens it takes until it holds a stop; None where it holds none."""

    def holds(count: int) -> bool:
        text = tokenizer.decode(list(tokens[:count]), skip_special_tokens=True)
        return len(cut(text, stops)) < len(text)

    count = len(tokens)
    if not stops or not holds(count):
        return None
    while holds(count - 1):
        count -= 1
    return count


def refuse_nan(logits: Tensor, where: str) -> None:
    """Raises CheckpointError where a model has computed NaN: whatever is chosen from that is noise."""
    if bool(logits.isnan().any()):
        raise CheckpointError(
            "It computes NaN: its weights hold NaN or infinity, or numbers that float16 does not hold.",
            where=where,
            remedy=f"zamba-compat inspect {where} --values looks for them; --load bfloat16 holds larger numbers.",
        )


def _begun(text: str, stop: str) -> int:
    """The length of the longest end of a text with which a stop begins."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


class _Numbers:
    def __init__(self, where: str) -> None:
        self._where = where

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        refuse_nan(scores, self._where)
        return scores


class _Stops:
    """Ends a row whose newest tokens complete a stop. A token is a byte or more, so few of them need be looked at."""

    def __init__(self, tokenizer: Any, stops: Sequence[str], start: int) -> None:
        self._tokenizer, self._stops, self._start = tokenizer, stops, start
        self._tokens = (
            max(len(stop.encode()) for stop in stops) + 8
        )  # some more: what a token says depends on those before

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        import torch

        newest = input_ids[:, max(self._start, input_ids.shape[1] - self._tokens) :]
        texts = self._tokenizer.batch_decode(newest, skip_special_tokens=True)
        ended = [any(stop in text for stop in self._stops) for text in texts]
        return torch.tensor(ended, dtype=torch.bool, device=input_ids.device)
