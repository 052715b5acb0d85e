"""How far one model's next-token distributions are from another's, on a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from zamba_compat.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

WINDOW = 512  # tokens per forward pass
MOST = 2048  # tokens in all: log-probabilities of 32000 words take 262 MB


def read_text(path: str | Path) -> str:
    """The text to measure on.

    Raises:
        CheckpointError: no such file, or none that is UTF-8 text.
    """
    remedy = "Give a UTF-8 text file of some thousand words."
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"The text cannot be read: {error}.", where=str(path), remedy=remedy) from error
    if not text.strip():
        raise CheckpointError("The text is empty.", where=str(path), remedy=remedy)
    return text


def kl_divergence(reference: Path, other: Path, text: str) -> float:
    """Mean over the tokens of KL(reference || other) of the next token's distributions, in nats.

    Both models are loaded by from_pretrained in the dtype they are stored in, one after the other, and run on the first
    `MOST` tokens in windows of `WINDOW`; the divergence is computed in float32.

    Args:
        reference: a checkpoint directory with a tokenizer.
        other: a checkpoint directory of the same vocabulary.
        text: what to run on.

    Raises:
        CheckpointError: no tokenizer, or too short a text.
    """
    windows = windows_of(reference, text)
    wanted = [_log_probabilities(model, ids) for model in [_load(reference)] for ids in windows]
    model = _load(other)
    total = count = 0.0
    for ids, log_p in zip(windows, wanted, strict=True):
        log_q = _log_probabilities(model, ids)
        total += (log_p.exp() * (log_p - log_q)).sum().item()
        count += len(log_p)
    return total / count


def windows_of(directory: Path, text: str, most: int | None = None) -> list[Tensor]:
    """The first `most` (or `MOST`) tokens of a text, in windows of `WINDOW`, by the tokenizer beside a checkpoint.

    Raises:
        CheckpointError: no tokenizer, or too short a text.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"The tokenizer cannot be loaded: {error}",
            where=str(directory.name),
            remedy="Put the tokenizer beside the source, or leave the text out.",
        ) from error
    ids: Tensor = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"][0, : most or MOST]
    if len(ids) < 2:
        raise CheckpointError("The text has fewer than two tokens.", remedy="Give a text of some thousand words.")
    return [ids[start : start + WINDOW] for start in range(0, len(ids), WINDOW)]


def _load(directory: Path) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return AutoModelForCausalLM.from_pretrained(directory, torch_dtype="auto").eval()
    finally:
        if shown:
            logging.enable_progress_bar()


def _log_probabilities(model: Any, ids: Tensor) -> Tensor:
    """[tokens, vocabulary], float32."""
    import torch

    with torch.inference_mode():
        logits: Tensor = model(input_ids=ids[None], use_cache=False).logits
    return logits[0].float().log_softmax(-1)
