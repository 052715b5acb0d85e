"""What a text costs a model: its perplexity."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zamba_compat.errors import CheckpointError

from .loading import Loaded
from .processes import spread
from .stopping import refuse_nan

if TYPE_CHECKING:
    from torch import Tensor

WINDOW = 512  # tokens


@dataclass(frozen=True)
class Perplexity:
    """Attributes: nats in all; tokens and UTF-8 bytes that they are for."""

    nats: float
    tokens: int
    bytes: int

    @property
    def per_token(self) -> float:
        """exp(nats / tokens); infinite beyond what a float holds."""
        return _exp(self.nats / self.tokens)

    @property
    def per_byte(self) -> float:
        """exp(nats / bytes): comparable between models with different tokenizers."""
        return _exp(self.nats / self.bytes)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**dataclasses.asdict(self), "per_token": self.per_token, "per_byte": self.per_byte}


def perplexity(loaded: Loaded, text: str, *, window: int = WINDOW, stride: int | None = None) -> Perplexity:
    """Negative log-likelihood of a text, window by window, summed in float64.

    Each window begins with the tokenizer's begin token, where it has one; where it has none, with the last token of the
    window before, and the text's first token is not scored. Without a stride the windows do not overlap otherwise.
    With one, each window begins `stride` tokens after the last, and counts only the tokens that the last did not.

    Args:
        text: what to score.
        window: tokens per forward, the begin token not counted.
        stride: tokens between the starts of windows; None is `window`.

    Raises:
        CheckpointError: an empty text; a model that computes NaN; as `check_windows`.
    """
    check_windows(window, stride)
    stride = window if stride is None else stride
    tokens = loaded.tokenizer(text, add_special_tokens=False, return_tensors="pt", verbose=False).input_ids[0]
    begin = loaded.tokenizer.bos_token_id
    if begin is None:  # a window's first token is predicted from nothing: it is the last one of the window before
        stride = min(stride, window - 1)
    spans = _spans(len(tokens), window, stride, skipped=int(begin is None)) if stride else []
    if not spans or (begin is None and len(tokens) < 2):
        raise CheckpointError("The text has no tokens to score.", remedy="Give a longer text.")

    def nats(span: tuple[int, int, int]) -> float:
        return _nats(loaded, tokens[span[0] : span[1]], span[2], begin)

    counted = len(tokens) - (begin is None)
    return Perplexity(math.fsum(spread(spans, nats)), counted, len(text.encode()))


def check_windows(window: int, stride: int | None) -> None:
    """Raises CheckpointError for a window below 1, or a stride that is not from 1 to the window."""
    remedy = "Give another value."
    if window < 1:
        raise CheckpointError(f"window is {window}, not 1 or more.", remedy=remedy)
    if stride is not None and not 1 <= stride <= window:
        raise CheckpointError(f"stride is {stride}, not from 1 to the window, {window}.", remedy=remedy)


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _spans(length: int, window: int, stride: int, skipped: int = 0) -> list[tuple[int, int, int]]:
    """(start, end, tokens at the end that count) of each window; each token but the first `skipped` counts once."""
    spans, counted = [], skipped
    for start in range(0, length, stride):
        end = min(start + window, length)
        if end > counted:
            spans.append((start, end, end - counted))
            counted = end
        if end == length:
            break
    return spans


def _nats(loaded: Loaded, tokens: Tensor, counted: int, begin: int | None) -> float:
    import torch
    import torch.nn.functional as F

    ids = tokens if begin is None else torch.cat((tokens.new_tensor([begin]), tokens))
    with torch.inference_mode():
        logits = loaded.model(ids[None, :-1].to(loaded.device), use_cache=False).logits[0, -counted:]
    refuse_nan(logits, loaded.name)
    targets = ids[1:][-len(logits) :].to(loaded.device)
    return float(F.cross_entropy(logits.double(), targets, reduction="sum"))
