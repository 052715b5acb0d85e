"""Models in bfloat16 and their way token by token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from support import synthetic


def narrow(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.bfloat16() for name, tensor in state.items()}


def model_of(case: synthetic.Case, directory: Path) -> Any:
    from transformers import AutoModelForCausalLM

    path = synthetic.write_checkpoint(directory, narrow(case.state), case.config)
    return AutoModelForCausalLM.from_pretrained(path, torch_dtype=torch.bfloat16).eval()


def shared_layers(model: Any) -> list[Any]:
    """The shared blocks' modules, one for each position."""
    return [layer.shared_transformer for layer in model.model.layers if hasattr(layer, "shared_transformer")]


def blocks(model: Any) -> list[Any]:
    """One for each block."""
    return list({layer.self_attn.q_proj.weight.data_ptr(): layer for layer in shared_layers(model)}.values())


@torch.no_grad()
def prompt(model: Any, ids: Tensor, cache: Any = None) -> Any:
    return model(ids, past_key_values=cache, use_cache=True)


def decode(model: Any, ids: Tensor, start: int, cache: Any) -> Tensor:
    """Logits of the tokens from `start` on, one by one."""
    return torch.cat([prompt(model, ids[:, i : i + 1], cache).logits for i in range(start, ids.shape[1])], 1)


def run(model: Any, ids: Tensor, start: int = 20) -> Tensor:
    return decode(model, ids, start, prompt(model, ids[:, :start]).past_key_values)


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())
