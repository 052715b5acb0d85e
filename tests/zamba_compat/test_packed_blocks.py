"""Copies of the shared blocks' weights: what they compute, when they are made, and when they are no longer good."""

from __future__ import annotations

import copy
import gc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import zamba_compat  # noqa: F401
from support import synthetic
from support.tokens import blocks, decode, narrow, off, prompt, run, shared_layers
from zamba_compat import packed_blocks
from zamba_compat.native import packed

transformers = pytest.importorskip("transformers", minversion="4.49")
pytestmark = pytest.mark.skipif(packed.loops() is None, reason="no loops in C here")
WEIGHTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
WEIGHTS += ("feed_forward.gate_up_proj", "feed_forward.down_proj")


@pytest.fixture(params=["1.2B", "7B"])
def case(request: pytest.FixtureRequest) -> synthetic.Case:
    return synthetic.case(request.param, length=30, time_step_min=1e-9)


def replace_weights(model: Any) -> None:
    """By others of the same content, which are tied as they were."""
    new: dict[int, torch.nn.Parameter] = {}
    for module in (layer.get_submodule(name) for layer in shared_layers(model) for name in WEIGHTS):
        before = module.weight
        if id(before) not in {id(one) for one in new.values()}:
            other = torch.nn.Parameter(before.detach().clone(), requires_grad=False)
            module.weight = new.setdefault(before.data_ptr(), other)


def weights(model: Any) -> list[Tensor]:
    return [block.get_submodule(name).weight for block in blocks(model) for name in WEIGHTS]


def copies(model: Any) -> list[Any]:
    """The parts of each weight's copy, () where there is none."""
    known = [packed_blocks._copies.get(weight) for weight in weights(model)]
    return [() if one is None else one._parts for one in known]


def test_tokens_are_no_further_off(case: synthetic.Case, model: Any, native: Any) -> None:
    """From the float64 reference, than PyTorch's products are; and each of the products went through a copy."""
    wanted = synthetic.forward(narrow(case.state), case.config, case.ids)[:, 20:]
    with_copies = run(model, case.ids)
    assert all(copies(model)) and len(copies(model)) == 6 * case.config["num_mem_blocks"]
    native(False)
    assert off(with_copies, wanted) < 1.1 * off(run(model, case.ids), wanted) < 0.05


@pytest.mark.parametrize("name", WEIGHTS)
def test_every_weight_counts(case: synthetic.Case, model: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong copy shows in the logits: the test above would notice."""
    wanted = run(model, case.ids)
    weight = blocks(model)[0].get_submodule(name).weight
    made = packed_blocks._copies[weight]
    made._parts = tuple(packed.loops().pack(part) for part in made._split(-weight.detach()))  # type: ignore[union-attr]
    monkeypatch.setattr(packed_blocks.Copy, "_still", lambda *given: True)
    assert off(run(model, case.ids), wanted) > 0.01


def test_copies_are_made_at_the_second_token_and_go_with_the_weights(case: synthetic.Case, model: Any) -> None:
    gc.collect()
    before = len(packed_blocks._copies)
    cache = prompt(model, case.ids[:, :20]).past_key_values
    assert not any(copies(model))
    prompt(model, case.ids[:, 20:21], cache)
    assert not any(copies(model))
    prompt(model, case.ids[:, 21:22], cache)
    assert all(copies(model))
    assert len(packed_blocks._copies) > before
    assert all(not other for other in copies(copy.deepcopy(model)))
    assert set(model.state_dict()) == set(copy.deepcopy(model).state_dict())
    parts = copies(model)
    del parts, cache
    for layer in model.model.layers:
        if hasattr(layer, "shared_transformer"):
            del layer.shared_transformer
    gc.collect()
    assert len(packed_blocks._copies) == before


CHANGES = {
    "in place": lambda weight: weight.mul_(1.5),
    "unseen": lambda weight: weight.data.mul_(1.5),
    "one row, unseen": lambda weight: weight.data[3].mul_(4),
    "other memory": lambda weight: setattr(weight, "data", weight.data * 1.5),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_the_ones_that_count(case: synthetic.Case, model: Any, native: Any, change: str) -> None:
    """After a change between two generations, by whatever way."""
    before = run(model, case.ids)
    with torch.no_grad():
        for weight in weights(model):
            CHANGES[change](weight)
    changed = run(model, case.ids)
    assert off(changed, before.double()) > 0.03
    assert all(copies(model)), "made again"
    native(False)
    assert off(changed, run(model, case.ids).double()) < 0.02


@pytest.mark.parametrize("change", ["in place", "unseen", "other memory"])
@pytest.mark.parametrize("turn", [False, True])
def test_changed_in_the_middle(case: synthetic.Case, model: Any, native: Any, change: str, turn: bool) -> None:
    """Between two tokens of a generation, or two turns of a chat."""

    def both() -> Tensor:
        cache = prompt(model, case.ids[:, :10]).past_key_values
        decode(model, case.ids[:, :20], 10, cache)
        with torch.no_grad():
            for weight in weights(model):
                CHANGES[change](weight)
        start = 20
        if turn:
            prompt(model, case.ids[:, 20:25], cache)
            start = 25
        result = decode(model, case.ids, start, cache)
        with torch.no_grad():
            for weight in weights(model):
                weight.data.div_(1.5)
        return result

    changed = both()
    native(False)
    assert off(changed, both().double()) < 0.02


def test_generations_in_turn_are_compared_for_once_each(
    case: synthetic.Case, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In full, that is; and again after a prompt, whosever it is."""
    run(model, case.ids)
    caches = [prompt(model, case.ids[:, :20]).past_key_values for _ in range(2)]
    whole, same = [], packed.Loops.same

    def watched(self: Any, part: Any, weight: Tensor, row: int | None = None) -> bool:
        whole.extend([part] if row is None else [])
        return same(self, part, weight, row)

    monkeypatch.setattr(packed.Loops, "same", watched)
    parts = sum(len(made) for made in copies(model))
    for i in range(20, 24):
        logits = [prompt(model, case.ids[:, i : i + 1], cache).logits for cache in caches]
        assert torch.equal(*logits)
    assert len(whole) == 2 * parts
    prompt(model, case.ids[:, :3])
    prompt(model, case.ids[:, 24:25], caches[0])
    assert len(whole) == 3 * parts


def test_weights_that_become_others_are_not_misread(case: synthetic.Case, model: Any) -> None:
    """As after pruning: the same parameter, of a width that has no copy."""
    run(model, case.ids)
    with torch.no_grad():
        for block in blocks(model):
            gate_up, down = block.feed_forward.gate_up_proj, block.feed_forward.down_proj
            for weight in (gate_up.weight, down.weight):
                weight.data = weight.data[:, :40].contiguous()
            for weight in (gate_up.weight, down.weight):
                made = packed_blocks._copies[weight]
                for token in [torch.zeros(1) for _ in range(4)]:
                    assert made.ready(packed.loops(), weight, token, model) == ()


def test_in_several_threads(case: synthetic.Case, model: Any) -> None:
    run(model, case.ids)
    wanted = run(model, case.ids)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: run(model, case.ids), range(8)):
            assert off(found, wanted.double()) < 0.02  # the other products may take another kernel in a thread


def test_where_nothing_is_copied(case: synthetic.Case, model: Any, native: Any) -> None:
    """With gradients, in other dtypes, several rows, without a cache, without room for it, and switched off."""
    cache = prompt(model, case.ids[:, :20]).past_key_values
    for i in range(20, 24):
        model(case.ids[:, i : i + 1], past_key_values=copy.deepcopy(cache), use_cache=True)
    with torch.no_grad():
        for i in range(20, 24):
            model(case.ids[:, i : i + 1], use_cache=False)
    two = case.ids[:, :20].repeat(2, 1)
    decode(model, case.ids.repeat(2, 1), 20, prompt(model, two).past_key_values)
    native(False)
    run(model, case.ids)
    native(True)
    assert not any(copies(model))
    run(model.float(), case.ids)
    assert not any(copies(model))


def test_without_memory_to_spare(case: synthetic.Case, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_blocks, "_has_room", lambda size: False)
    run(model, case.ids)
    assert not any(copies(model))


def test_room() -> None:
    assert packed_blocks._has_room(1)
    if Path("/proc/meminfo").exists():
        assert not packed_blocks._has_room(1 << 60)


def test_weights_brought_in_for_a_token_are_not_copied(case: synthetic.Case, model: Any) -> None:
    """As those are that wait on the disk: new tensors every time."""
    cache = prompt(model, case.ids[:, :20]).past_key_values
    for i in range(20, 26):
        replace_weights(model)
        prompt(model, case.ids[:, i : i + 1], cache)
        assert not any(copies(model))


def test_weights_of_inference_mode_are_left_alone(case: synthetic.Case, model: Any) -> None:
    """They have no version to ask for."""
    with torch.inference_mode():
        replace_weights(model)
    run(model, case.ids)
    assert not any(copies(model))


def test_in_inference_mode(case: synthetic.Case, model: Any) -> None:
    run(model, case.ids)
    wanted = run(model, case.ids)
    with torch.inference_mode():
        assert torch.equal(run(model, case.ids), wanted)
    assert torch.equal(run(model, case.ids), wanted)
