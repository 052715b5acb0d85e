"""Training: Muon for matrices, AdamW for the rest, warm-up and cosine, everything drawn from one seed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .model import TinyZamba2
from .muon import Muon
from .shape import BOS, FIRST_BYTE


@dataclass(frozen=True)
class Phase:
    """So many steps on batches of so many windows of so many bytes."""

    steps: int
    batch: int
    length: int


@dataclass(frozen=True)
class Plan:
    """One run: its phases under one cosine schedule, learning rates of Muon and of AdamW."""

    phases: tuple[Phase, ...]
    rate: float
    small_rate: float
    warmup: int = 40
    floor: float = 0.02
    clip: float = 1.0

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return sum(phase.steps for phase in self.phases)

    def scaled(self, factor: float) -> Plan:
        """The same plan with about factor times the steps in every phase."""
        phases = tuple(Phase(max(1, round(p.steps * factor)), p.batch, p.length) for p in self.phases)
        return Plan(phases, self.rate, self.small_rate, self.warmup, self.floor, self.clip)

    def schedule(self, step: int) -> float:
        """Factor of the learning rates at a step: linear warm-up, then a half cosine down to floor."""
        progress = max(0, step - self.warmup) / max(1, self.steps - self.warmup)
        cosine = self.floor + (1 - self.floor) * (1 + math.cos(math.pi * progress)) / 2
        return cosine * min(1.0, (step + 1) / self.warmup)


# Short windows teach most of it at half the cost; long ones then teach the rest of the context.
BASE = Plan((Phase(420, 4, 256), Phase(120, 3, 512)), rate=8e-3, small_rate=5e-3)
TUNED = Plan((Phase(110, 4, 256), Phase(30, 3, 512)), rate=4e-3, small_rate=2e-3)


def batches(text: bytes, plan: Plan, seed: int) -> Iterator[Tensor]:
    """(batch, 1 + length) token ids, one per step: the begin token, then bytes from random places."""
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).long() + FIRST_BYTE
    dice = torch.Generator().manual_seed(seed)
    for phase in plan.phases:
        for _ in range(phase.steps):
            start = torch.randint(0, len(tokens) - phase.length, (phase.batch, 1), generator=dice)
            yield F.pad(tokens[start + torch.arange(phase.length)], (1, 0), value=BOS)


def fit(model: TinyZamba2, text: bytes, plan: Plan, seed: int, say: Callable[[str], None] = print) -> float:
    """Train in place; returns the seconds it took."""
    matrices, others = [], []
    for name, p in model.named_parameters():
        (matrices if p.dim() == 2 and "embed" not in name else others).append(p)
    muon = Muon(matrices, lr=plan.rate)
    adamw = torch.optim.AdamW(others, lr=plan.small_rate, betas=(0.9, 0.95), weight_decay=0.0)
    began, seen, recent = time.monotonic(), 0, 0.0
    for step, ids in enumerate(batches(text, plan, seed)):
        factor = plan.schedule(step)
        muon.param_groups[0]["lr"] = plan.rate * factor
        adamw.param_groups[0]["lr"] = plan.small_rate * factor
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
        muon.step()
        adamw.step()
        model.zero_grad(set_to_none=True)
        seen += ids[:, 1:].numel()
        recent += (loss.item() - recent) / min(step + 1, 40)
        if (step + 1) % 50 == 0 or step + 1 == plan.steps:
            spent = time.monotonic() - began
            bits = recent / math.log(2)
            say(f"step {step + 1}/{plan.steps}  {bits:.3f} bits/byte  {spent:.0f} s  {seen / spent:.0f} bytes/s")
    return time.monotonic() - began
