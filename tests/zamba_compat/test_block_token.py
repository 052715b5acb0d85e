"""One token's call of a shared block: every product of it, and what is left to PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import zamba_compat  # noqa: F401
from support import synthetic
from support.tokens import blocks, model_of, narrow, off, run, shared_layers
from zamba_compat import block_token, configure
from zamba_compat.native import packed, rows

pytest.importorskip("transformers", minversion="4.49")
pytestmark = pytest.mark.skipif(packed.loops() is None or rows.loop() is None, reason="no loops in C here")


@pytest.fixture(params=["1.2B", "7B"])
def case(request: pytest.FixtureRequest) -> synthetic.Case:
    return synthetic.case(request.param, length=30, time_step_min=1e-9)


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each call of a feed-forward part was taken."""
    seen: list[bool] = []
    mlp = block_token.Token.mlp

    def watched(self: Any, *given: Any) -> Tensor | None:
        found = mlp(self, *given)
        seen.append(found is not None)
        return found

    monkeypatch.setattr(block_token.Token, "mlp", watched)
    return seen


def test_the_embeddings_half_is_computed_once_a_token(
    case: synthetic.Case, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(model, case.ids)
    halves, others = [], []
    product, token = packed.Loops.product, packed.Loops.token

    def watched(seen: list[Any], original: Any) -> Any:
        return lambda self, part, *args, **kwargs: seen.append(part) or original(self, part, *args, **kwargs)

    monkeypatch.setattr(packed.Loops, "product", watched(halves, product))
    monkeypatch.setattr(packed.Loops, "token", watched(others, token))
    run(model, case.ids[:, :29], 28)
    assert len({id(part) for part in halves}) == len(halves) == 3 * len(blocks(model))
    assert len(others) == 6 * len(shared_layers(model))


def test_what_a_norm_was_made_to_say_is_not_taken_apart(case: synthetic.Case, model: Any, native: Any) -> None:
    """With a hook that changes the norm's result the whole product is computed."""
    for block in blocks(model):
        block.input_layernorm.register_forward_hook(lambda module, given, found: found.roll(1, -1))
    changed = run(model, case.ids)
    native(False)
    assert off(changed, run(model, case.ids).double()) < 0.02


def test_a_cache_that_cannot_be_told_again(model: Any) -> None:
    layer, one = blocks(model)[0], torch.zeros(1, 1, 64, dtype=torch.bfloat16)
    with torch.no_grad():
        assert block_token.token_of(layer, one, one, object.__new__(type("Cache", (), {}))) is not None
        assert block_token.token_of(layer, one, one, ((one, one),)) is None
        assert block_token.token_of(layer, one, one, None) is None


def test_the_feed_forward_part_is_taken_from_the_second_token_on(
    case: synthetic.Case, model: Any, whole: list[bool]
) -> None:
    got = run(model, case.ids)
    uses = len(shared_layers(model))
    assert whole == [False] * uses + [True] * uses * (case.ids.shape[1] - 21)
    wanted = synthetic.forward(narrow(case.state), case.config, case.ids)[:, 20:]
    assert off(got, wanted) < 0.05


@pytest.mark.parametrize("matrix", [0, 1])
@pytest.mark.parametrize("of", ["linear_q_adapter_list", "linear_v_adapter_list", "gate_up_proj_adapter_list"])
def test_every_adapter_counts(case: synthetic.Case, model: Any, native: Any, of: str, matrix: int) -> None:
    """One that was changed shows as it does without the loops."""
    before = run(model, case.ids)
    for index, layer in enumerate(shared_layers(model)):
        adapters = getattr(layer.self_attn if "linear" in of else layer.feed_forward, of, ())
        if len(adapters):
            with torch.no_grad():
                adapters[index][matrix].weight.mul_(-30)
    changed = run(model, case.ids)
    native(False)
    assert off(changed, run(model, case.ids).double()) < 0.03
    if len(adapters):
        assert off(changed, before.double()) > 0.05


WATCHED = {
    "feed_forward": lambda layer, index: layer.feed_forward.gate_up_proj,
    "down_proj": lambda layer, index: layer.feed_forward.down_proj,
    "an adapter": lambda layer, index: layer.feed_forward.gate_up_proj_adapter_list[index],
    "its second matrix": lambda layer, index: layer.feed_forward.gate_up_proj_adapter_list[index][1],
}


@pytest.mark.parametrize("of", WATCHED)
def test_modules_that_are_watched_are_called(case: synthetic.Case, model: Any, whole: list[bool], of: str) -> None:
    called = []
    for index, layer in enumerate(shared_layers(model)):
        WATCHED[of](layer, index).register_forward_hook(lambda module, given, found: called.append(found) or -found)
    changed = run(model, case.ids)
    assert not any(whole) and len(called) >= len(whole)
    configure(native=False)
    try:
        assert off(changed, run(model, case.ids).double()) < 0.03
    finally:
        configure(native=None)


def test_another_block_running_inside_a_call(case: synthetic.Case, model: Any) -> None:
    """Its feed-forward part is none of the running one's business, and nothing runs on after a call."""
    first, last = shared_layers(model)[0], shared_layers(model)[-1]
    one = torch.zeros(1, 1, 64, dtype=torch.bfloat16)
    with torch.no_grad():
        token = block_token.token_of(first, one, one, object.__new__(type("Cache", (), {})))
        index = synthetic.hybrid_layers(case.config)[-1]
        with block_token.running(token):
            other = type(last.feed_forward)(model.config, 1, 0)
            assert block_token.running_mlp(other, one, index) is None
            assert block_token.running_mlp(last.feed_forward, torch.zeros(1, 2, 64), index) is None
    assert block_token._running.token is None


def test_biases_of_a_config_nobody_published(tmp_path: Path, native: Any) -> None:
    case = synthetic.case("1.2B", length=30, time_step_min=1e-9)
    model = model_of(case, tmp_path / "model")
    for layer in blocks(model):
        for module in (layer.feed_forward.gate_up_proj, layer.feed_forward.down_proj, layer.self_attn.q_proj):
            module.bias = torch.nn.Parameter(torch.randn(len(module.weight)).bfloat16(), requires_grad=False)
    got = run(model, case.ids)
    native(False)
    assert off(got, run(model, case.ids).double()) < 0.02
