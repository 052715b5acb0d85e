"""The limits that a benchmark's times are a share of."""

from __future__ import annotations

import torch
from torch import nn

from _bench import work


def test_products_of_a_shared_layer_count_each_time() -> None:
    shared, head = nn.Linear(4, 6, bias=False), nn.Linear(6, 10)
    model = nn.ModuleList([shared, shared, head, nn.LayerNorm(4)])

    def forward() -> None:
        x = torch.ones(2, 3, 4)
        shared(x)
        head(shared(input=x)[:, -1:])

    found = work.products(model, forward)
    assert found.bytes == 4 * (2 * 24 + 60)
    assert found.multiply_adds == 2 * 6 * 24 + 2 * 60
    assert not any(module._forward_pre_hooks for module in model)


def test_a_weight_in_4_bits_is_its_bytes_and_scales() -> None:
    state = type("State", (), {"absmax": torch.zeros(8), "nested": False})()
    weight = torch.zeros(64, 1, dtype=torch.uint8)
    weight.quant_state = state  # type: ignore[attr-defined]
    assert work.stored(weight) == 64 + 32
    assert work.stored(torch.zeros(3, dtype=torch.bfloat16)) == 6
