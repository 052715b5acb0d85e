"""Training: AdamW, warm-up and cosine, random windows, everything drawn from one seed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .model import TinyZamba2
from .shape import BOS, FIRST_BYTE


@dataclass(frozen=True)
class Plan:
    """One run: steps of batch windows of length bytes, learning rate and its warm-up in steps."""

    steps: int
    rate: float
    length: int = 512
    batch: int = 4
    warmup: int = 30
    floor: float = 0.02
    decay: float = 0.1
    clip: float = 1.0


def windows(text: Tensor, plan: Plan, dice: torch.Generator) -> Tensor:
    """(batch, 1 + length) token ids: the begin token, then bytes from random places."""
    start = torch.randint(0, len(text) - plan.length, (plan.batch, 1), generator=dice)
    return F.pad(text[start + torch.arange(plan.length)], (1, 0), value=BOS)


def fit(model: TinyZamba2, text: bytes, plan: Plan, seed: int, say: Callable[[str], None] = print) -> float:
    """Train in place; returns the seconds it took."""
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).long() + FIRST_BYTE
    dice = torch.Generator().manual_seed(seed)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": plan.decay}, {"params": others, "weight_decay": 0.0}],
        lr=plan.rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    began, smooth = time.monotonic(), 0.0
    for step in range(plan.steps):
        progress = max(0, step - plan.warmup) / max(1, plan.steps - plan.warmup)
        cosine = plan.floor + (1 - plan.floor) * (1 + math.cos(math.pi * progress)) / 2
        for group in optimizer.param_groups:
            group["lr"] = plan.rate * cosine * min(1.0, (step + 1) / plan.warmup)
        ids = windows(tokens, plan, dice)
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        smooth += (loss.item() - smooth) / min(step + 1, 40)
        if (step + 1) % 50 == 0 or step + 1 == plan.steps:
            spent = time.monotonic() - began
            rate = (step + 1) * plan.batch * plan.length / spent
            say(f"step {step + 1}/{plan.steps}  bits/byte {smooth / math.log(2):.3f}  {rate:.0f} bytes/s  {spent:.0f} s")
    return time.monotonic() - began
