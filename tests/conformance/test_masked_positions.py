"""What comes out at masked positions: a mixer's output is zero, as in stock, and other padding changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.ours
MASKS = {
    "ones": [[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]],
    "holes": [[1, 1, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 1, 1]],
    "right": [[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1]],
    "last": [[1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 0]],
}


@pytest.fixture
def model(armed: bool) -> Any:
    from transformers import Zamba2Config, Zamba2ForCausalLM

    config = Zamba2Config(
        vocab_size=99, hidden_size=32, num_hidden_layers=3, layers_block_type=["mamba", "hybrid", "hybrid"],
        mamba_d_state=8, mamba_ngroups=2, n_mamba_heads=4, chunk_size=8, intermediate_size=16, num_attention_heads=2,
        num_key_value_heads=2, adapter_rank=4, num_mem_blocks=1, use_mem_rope=True, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, initializer_range=0.06,
    )  # fmt: skip
    return Zamba2ForCausalLM(config).eval()


@torch.no_grad()
def last_logits(model: Any, ids: Tensor, mask: Tensor, *, positions: bool) -> Tensor:
    options: dict[str, Any] = {}
    if positions:
        options["position_ids"] = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
    logits: Tensor = model(ids, attention_mask=mask, use_cache=False, **options).logits[:, -1]
    return logits


@pytest.mark.parametrize("watched", [False, True], ids=["", "watched"])
@pytest.mark.parametrize("positions", [False, True], ids=["", "positions"])
@pytest.mark.parametrize("kind", MASKS)
def test_more_padding_on_the_left(kind: str, positions: bool, watched: bool, model: Any) -> None:
    ids, mask = torch.randint(3, 99, (2, 7)), torch.tensor(MASKS[kind])
    if watched:
        model.model.layers[0].mamba.norm.register_forward_hook(lambda *given: None)
    wanted = last_logits(model, ids, mask, positions=positions)
    for more in (1, 32):
        zeros = torch.zeros(2, more, dtype=torch.int64)
        got = last_logits(model, torch.cat([zeros, ids], 1), torch.cat([zeros, mask], 1), positions=positions)
        assert (got - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("grad", [False, True], ids=["", "gradients"])
@pytest.mark.parametrize("watched", [False, True], ids=["", "watched"])
@pytest.mark.parametrize("kind", MASKS)
def test_a_mixers_output(kind: str, watched: bool, grad: bool, model: Any) -> None:
    ids, mask = torch.randint(3, 99, (2, 7)), torch.tensor(MASKS[kind])
    seen: list[Tensor] = []
    mixer = model.model.layers[0].mamba
    mixer.register_forward_hook(lambda module, given, made: seen.append(made))
    if watched:
        mixer.out_proj.register_forward_hook(lambda *given: None)
    with torch.set_grad_enabled(grad):
        model(ids, attention_mask=mask, use_cache=False)
    assert torch.equal(seen[0].abs().sum(-1) > 0, mask > 0)
