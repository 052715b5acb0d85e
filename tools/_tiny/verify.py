"""Does a checkpoint on disk compute the same in transformers as in the model it came from?"""

from __future__ import annotations

import importlib.metadata
import math
from pathlib import Path
from typing import Any

import torch

from .checkpoint import load
from .shape import BOS, FIRST_BYTE

# The first release whose plain Zamba2 ties two blocks and carries the state between chunks right.
RELEASE = (5, 17)
# Largest difference of logits, relative to the largest logit.
TOLERANCE = 1e-4


def reference_available() -> bool:
    """Whether the installed transformers can serve as the reference."""
    try:
        version = importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError:
        return False
    major, minor = version.split(".")[:2]
    return (int(major), int(minor)) >= RELEASE


@torch.inference_mode()
def difference(folder: Path, text: bytes, clamp: bool = False) -> float:
    """Largest difference of float32 logits over the first bytes of text, relative to the largest logit.

    The length crosses the chunk boundary. transformers' plain path clamps the time step from below, which the
    trained model does not; the clamp is taken away unless `clamp` asks for the released behaviour.
    """
    transformers: Any = importlib.import_module("transformers")
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if not clamp:
        for module in reference.modules():
            if hasattr(module, "time_step_limit"):
                module.time_step_limit = (0.0, math.inf)
    ids = torch.tensor([[BOS, *(byte + FIRST_BYTE for byte in text[:599])]])
    expected = reference(ids).logits
    return ((load(folder)(ids) - expected).abs().max() / expected.abs().max()).item()


def check(folder: Path, text: bytes) -> float:
    """The difference(), or ValueError if it exceeds TOLERANCE."""
    found = difference(folder, text)
    if not found <= TOLERANCE:
        raise ValueError(f"{folder}: logits differ from transformers' by {found:.2e}, more than {TOLERANCE:.0e}")
    return found
