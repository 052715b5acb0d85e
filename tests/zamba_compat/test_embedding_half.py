"""The embedding's half of q, k and v once per prompt: as right as without it, and only where it is for."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import zamba_compat  # noqa: F401
from support import synthetic
from support.tokens import narrow, off, shared_layers
from zamba_compat import embedding_half

pytest.importorskip("transformers", minversion="4.49")
LENGTH = 80


@pytest.fixture(params=["1.2B", "7B"])
def case(request: pytest.FixtureRequest) -> synthetic.Case:
    return synthetic.case(request.param, length=LENGTH, time_step_min=1e-9)


@pytest.fixture
def halves(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every product that took the embedding's half from before."""
    rows: list[int] = []
    add = embedding_half.add_product

    def counted(to: Tensor, x: Tensor, weight: Tensor) -> None:
        rows.append(len(x))
        add(to, x, weight)

    monkeypatch.setattr(embedding_half, "add_product", counted)
    return rows


@torch.no_grad()
def run(model: Any, ids: Tensor) -> Tensor:
    logits: Tensor = model(ids).logits
    return logits


def without(model: Any, ids: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    with monkeypatch.context() as patch:
        patch.setattr(embedding_half, "products", lambda *given: None)
        return run(model, ids)


def test_a_prompt_is_no_further_off(
    case: synthetic.Case, model: Any, halves: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the float64 reference, than with whole products; a batch has a scale for each of its rows."""
    ids = torch.cat([case.ids, case.ids.flip(1)])
    wanted = synthetic.forward(narrow(case.state), case.config, ids)
    found = run(model, ids)
    assert halves == [2 * LENGTH] * 3 * len(shared_layers(model))
    assert off(found, wanted) < 1.2 * off(without(model, ids, monkeypatch), wanted) < 0.05
    gc.collect()
    assert not len(embedding_half._products), "nothing outlives its prompt"


@pytest.mark.parametrize("part", ["scaled", "product"])
def test_the_half_counts(
    case: synthetic.Case, model: Any, halves: list[int], part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong one shows in the logits: the test above would notice."""
    made = embedding_half._Known.__init__

    def wrong(self: Any, scaled: Tensor, weight: Tensor) -> None:
        made(self, scaled, weight)
        self.product = -self.product

    wanted = run(model, case.ids)
    if part == "product":
        monkeypatch.setattr(embedding_half._Known, "__init__", wrong)
    else:
        monkeypatch.setattr(embedding_half._Normed, "makes", lambda *given: True)
        for layer in shared_layers(model):
            layer.input_layernorm.variance_epsilon *= 1e6
    assert off(run(model, case.ids), wanted) > 0.01


def test_every_prompt_has_its_own(case: synthetic.Case, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another text, and weights that were changed in between by a way that has no version."""
    for ids in (case.ids, case.ids.flip(1)):
        assert off(run(model, ids), without(model, ids, monkeypatch)) < 0.05
    for layer in shared_layers(model):
        layer.self_attn.q_proj.weight.data.mul_(-1)
        layer.input_layernorm.weight.data.mul_(1.5)
    assert off(run(model, case.ids), without(model, case.ids, monkeypatch)) < 0.05


def test_another_input_than_the_norms(case: synthetic.Case, model: Any, halves: list[int]) -> None:
    """A class that was given another forward is seen only by what it computes."""
    kind = type(shared_layers(model)[0].self_attn)
    forward = kind.forward

    def doubled(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return forward(self, 2 * hidden_states, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "forward", doubled)
        run(model, case.ids)
    assert not halves


@pytest.mark.parametrize("of", ["self_attn", "input_layernorm", "self_attn.q_proj"])
def test_a_module_that_is_watched(case: synthetic.Case, model: Any, halves: list[int], of: str) -> None:
    hooks = [layer.get_submodule(of).register_forward_hook(lambda *given: None) for layer in shared_layers(model)]
    run(model, case.ids)
    assert not halves
    for hook in hooks:
        hook.remove()
    run(model, case.ids)
    assert halves


def test_what_does_not_gain(
    case: synthetic.Case, model: Any, halves: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(model, case.ids[:, : embedding_half.FEWEST - 1])
    assert not halves, "too few rows"
    monkeypatch.setattr(embedding_half, "MOST", LENGTH - 1)
    run(model, case.ids)
    assert not halves, "too many rows"
    monkeypatch.undo()
    model(case.ids)
    model.float()
    run(model, case.ids)
    assert not embedding_half._products, "gradients and float32"


def test_a_prompt_without_memory(model: Any, halves: list[int]) -> None:
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        logits = model(torch.zeros(1, LENGTH, dtype=torch.long)).logits
    assert logits.shape[:2] == (1, LENGTH) and not halves
