"""Untying a built model gives the model that the untied config builds."""

from __future__ import annotations

import pytest
import torch

from support import synthetic
from zamba_compat.runtime.untie import untie


def build(config: synthetic.Config):
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))


@pytest.mark.parametrize("pattern", ["1.2B", "2.7B", "three-blocks"])
def test_same_parameters_as_built_untied(pattern: str) -> None:
    config = synthetic.make_config(pattern)
    positions = len(config["hybrid_layer_ids"])
    model, want = build(config), build({**config, "num_mem_blocks": positions})
    untie(model)
    assert model.config.num_mem_blocks == model.model.config.num_mem_blocks == positions
    assert sorted(model.state_dict()) == sorted(want.state_dict())
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in want.parameters())
    for layer in config["hybrid_layer_ids"]:
        got, right = model.model.layers[layer].shared_transformer, want.model.layers[layer].shared_transformer
        assert got.block_id == right.block_id == got.self_attn.block_id == got.feed_forward.block_id
