"""Perplexity per byte of a causal language model on a held-out text."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .shape import BOS, FIRST_BYTE

WINDOW = 512
TINY = Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "tiny"
TEXTS = ("base", "tuned")


@torch.inference_mode()
def perplexity(model: Callable[[Tensor], Any], text: bytes, window: int = WINDOW, batch: int = 4) -> float:
    """exp of the mean negative log-likelihood, in nats, over every byte of text.

    The text is cut into consecutive windows of `window` bytes, the last one shorter; each is predicted from the
    begin token and the window's own earlier bytes. The begin token itself is not predicted. `model` takes
    (batch, length) ids and returns logits, or an object that holds them as `.logits`, as transformers' models do.
    """
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).long() + FIRST_BYTE
    full = len(tokens) // window * window
    groups = [*tokens[:full].view(-1, window).split(batch)] if full else []
    if full < len(tokens):
        groups.append(tokens[full:].view(1, -1))
    total = 0.0
    for target in groups:
        out = model(F.pad(target[:, :-1], (1, 0), value=BOS))
        logits = out if isinstance(out, Tensor) else out.logits
        total += F.cross_entropy(logits.flatten(0, 1).double(), target.flatten(), reduction="sum").item()
    return math.exp(total / len(tokens))


def on_both_texts(directory: Path) -> list[float]:
    """Perplexity per byte of the checkpoint in `directory`, in float32, on the texts of `TEXTS`."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    texts = ((TINY / f"text_{name}.txt").read_bytes() for name in TEXTS)
    return [perplexity(lambda ids: model(ids, use_cache=False), text) for text in texts]
