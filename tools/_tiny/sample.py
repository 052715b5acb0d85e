"""Draw text from a tiny model, byte by byte."""

from __future__ import annotations

import torch

from .model import TinyZamba2
from .shape import BOS, FIRST_BYTE


@torch.inference_mode()
def sample(model: TinyZamba2, prompt: bytes, count: int, seed: int, temperature: float = 0.7) -> bytes:
    """prompt and count more bytes. The whole prefix is read again for each one: simple, and quick enough."""
    dice = torch.Generator().manual_seed(seed)
    ids = [BOS, *(byte + FIRST_BYTE for byte in prompt)]
    for _ in range(count):
        logits = model(torch.tensor([ids]))[0, -1, FIRST_BYTE : FIRST_BYTE + 256]
        ids.append(FIRST_BYTE + int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=dice)))
    return bytes(i - FIRST_BYTE for i in ids[1:])
