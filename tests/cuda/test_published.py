"""Published shapes with random weights made on the GPU: kernels against PyTorch, bytes held, bytes at the peak."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cuda import kernels
from zamba_compat.layout.published import PUBLISHED

SHAPES = tuple(PUBLISHED)


def build(shape: str, layers: int) -> Any:
    from transformers import Zamba2Config, Zamba2ForCausalLM

    config = dict(PUBLISHED[shape].config)
    kinds = config["layers_block_type"][:layers]
    config |= {"num_hidden_layers": layers, "layers_block_type": kinds}
    config = {name: value for name, value in config.items() if name != "hybrid_layer_ids"}
    torch.manual_seed(0)
    with torch.device("cuda"):
        return Zamba2ForCausalLM(Zamba2Config(**config)).to(torch.bfloat16).eval()


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_kernels_agree_with_plain_operations(shape: str) -> None:
    model = build(shape, 13)
    if not kernels.found(model):
        pytest.skip("no fused kernels")
    tokens = torch.randint(3, 32000, (2, 1000), device="cuda")
    mask = torch.ones_like(tokens)
    mask[0, :300] = 0
    fused = model(tokens, attention_mask=mask, use_cache=False).logits
    with kernels.none():
        plain = model(tokens, attention_mask=mask, use_cache=False).logits
    kept = mask.bool()
    error = (fused - plain)[kept].float().abs().max() / plain[kept].float().abs().max()
    assert error < 5e-2


@pytest.mark.parametrize("shape", SHAPES)
def test_a_block_is_held_once(shape: str) -> None:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model = build(shape, len(PUBLISHED[shape].config["layers_block_type"]))
    held, _ = kernels.placed(before)
    assert held < 1.02 * 2 * PUBLISHED[shape].parameters
    del model
