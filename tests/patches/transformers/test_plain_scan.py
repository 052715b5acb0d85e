"""The Mamba2 layers of the installed release against the reference, and the cache layouts of all releases."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from zamba_compat.patches.transformers import (
    embeddings_generation,
    hybrid_cache_reset,
    plain_scan,
    time_step_limit,
)

from support import reference, synthetic
from zamba_compat._engine.releases import place

TOLERANCE = 2e-5
LENGTH, CHUNK, TAPS = 46, 16, 4

pytestmark = pytest.mark.usefixtures("armed")


def releases() -> list[str]:
    return [f"4.{minor}.0" for minor in range(49, 58)] + [f"5.{minor}.0" for minor in range(25)]


@pytest.mark.parametrize("release", releases())
def test_every_release_has_one_scan(release: str) -> None:
    def applied(*adapters: Any) -> list[str]:
        return [a.name for a in adapters if place(a.since, a.fixed, a.ends, release).kind == "inside"]

    assert len(applied(*plain_scan.ADAPTERS)) == 1
    # Up to 5.14 the kernels are given the config's limit; since 5.5 the cache is transformers' own.
    late = tuple(map(int, release.split("."))) >= (5, 15)
    assert bool(applied(time_step_limit.ADAPTER, embeddings_generation.ADAPTER)) == late
    assert bool(applied(hybrid_cache_reset.ADAPTER)) == (tuple(map(int, release.split("."))) < (5, 5))


class HybridCache:
    """The states as Zamba2HybridDynamicCache has them: zeros to begin with, in the model's dtype."""

    def __init__(self) -> None:
        self.conv_states = {3: torch.zeros(2, 6, TAPS, dtype=torch.bfloat16)}
        self.ssm_states = {3: torch.zeros(2, 2, 3, 5, dtype=torch.bfloat16)}
        self.has_previous_state = False

    def forwarded(self) -> None:
        self.has_previous_state = True


class LayerCache:
    """The states as the caches of 5.5 to 5.13 have them: both in the dtype of the first."""

    def __init__(self) -> None:
        self.layers = {3: SimpleNamespace(conv_states=None, recurrent_states=None, past=False)}

    def has_previous_state(self, layer: int) -> bool:
        return bool(self.layers[layer].past)

    def update_conv_state(self, state: Tensor, layer: int) -> Tensor:
        held = self.layers[layer]
        held.past = True
        if held.conv_states is None:
            held.conv_states = torch.zeros_like(state)
        return held.conv_states.copy_(state)

    def update_recurrent_state(self, state: Tensor, layer: int) -> Tensor:
        held = self.layers[layer]
        if held.recurrent_states is None:
            held.recurrent_states = torch.zeros_like(state, dtype=held.conv_states.dtype)
        return held.recurrent_states.copy_(state)

    def forwarded(self) -> None: ...


class NumberedCache:
    """The states as the caches of 5.14 and later have them: new inputs are joined to those it holds."""

    def __init__(self) -> None:
        self.layers = {3: SimpleNamespace(conv_states={0: None}, recurrent_states={0: None}, past=False)}

    def has_previous_state(self, layer: int) -> bool:
        return bool(self.layers[layer].past)

    def update_conv_state(self, state: Tensor, layer: int) -> Tensor:
        held = self.layers[layer]
        held.past = True
        if held.conv_states[0] is None:
            held.conv_states[0] = torch.zeros_like(state)
        joined = torch.cat([held.conv_states[0], state], -1)
        held.conv_states[0].copy_(joined[..., -held.conv_states[0].shape[-1] :])
        return joined

    def update_recurrent_state(self, state: Tensor, layer: int) -> Tensor:
        held = self.layers[layer]
        if held.recurrent_states[0] is None:
            held.recurrent_states[0] = torch.zeros_like(state)
        return held.recurrent_states[0].copy_(state)

    def forwarded(self) -> None: ...


@pytest.mark.parametrize(
    ("make", "read", "write"),
    [
        (HybridCache, plain_scan.read_hybrid, plain_scan.write_hybrid),
        (LayerCache, plain_scan.read_layers, plain_scan.write_layers),
        (NumberedCache, plain_scan.read_numbered, plain_scan.write_numbered),
    ],
)
def test_states_survive_a_cache(make: Callable[[], Any], read: plain_scan.Read, write: plain_scan.Write) -> None:
    cache = make()
    assert read(cache, 3) == (None, None)
    for _ in range(3):
        conv_state = torch.randn(2, 6, TAPS).bfloat16()
        ssm_state = torch.randn(2, 2, 3, 5)
        write(cache, 3, conv_state.clone(), ssm_state.clone())
        cache.forwarded()
        held = read(cache, 3)
        assert torch.equal(held[0], conv_state)
        assert held[1].dtype == torch.float32
        assert torch.equal(held[1], ssm_state)


@pytest.fixture(scope="module", params=["1.2B", "7B"])
def case(request: pytest.FixtureRequest) -> synthetic.Case:
    return synthetic.case(request.param, length=LENGTH)


@pytest.fixture(scope="module")
def loaded(case: synthetic.Case, armed: bool, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoModelForCausalLM

    directory = synthetic.write_checkpoint(tmp_path_factory.mktemp("model"), case.state, case.config)
    return AutoModelForCausalLM.from_pretrained(directory)


@pytest.fixture
def model(loaded: Any) -> Any:
    loaded.zero_grad()
    return loaded.eval()


@torch.no_grad()
def run(model: Any, ids: Tensor, cache: Any = None, mask: Tensor | None = None, **kwargs: Any) -> Any:
    if mask is not None:
        kwargs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    kwargs.setdefault("use_cache", True)
    return model(ids, past_key_values=cache, attention_mask=mask, **kwargs)


def off(got: Tensor, wanted: Tensor) -> float:
    return reference.relative_difference(got, wanted)


@pytest.mark.parametrize("length", [1, 3, CHUNK - 1, CHUNK, CHUNK + 1, 40])
@pytest.mark.parametrize("use_cache", [True, False])
def test_lengths(model: Any, case: synthetic.Case, length: int, use_cache: bool) -> None:
    got = run(model, case.ids[:, :length], use_cache=use_cache).logits
    assert off(got, case.logits[:, :length]) < TOLERANCE


@pytest.mark.parametrize("cuts", [(2, 3, 4, 5, 6), (1, 4, 36), (37, 39, 40), (20, 36, 37)])
def test_any_number_of_tokens_after_a_cache(model: Any, case: synthetic.Case, cuts: tuple[int, ...]) -> None:
    cache, got = None, []
    for start, end in zip((0, *cuts), (*cuts, LENGTH), strict=True):
        output = run(model, case.ids[:, start:end], cache)
        cache = output.past_key_values
        got.append(output.logits)
    assert off(torch.cat(got, 1), case.logits) < TOLERANCE


def test_two_turns_of_a_padded_batch(model: Any, case: synthetic.Case) -> None:
    """Rows of different lengths in both turns, each padded on the left, then one token more."""
    first, second = (5, 21), (7, 2)
    ids = torch.zeros(2, 21 + 7 + 1, dtype=torch.long)
    for row, (n, k) in enumerate(zip(first, second, strict=True)):
        ids[row, 21 - n : 21] = case.ids[0, :n]
        ids[row, 28 - k :] = case.ids[0, n : n + k + 1]
    mask = (ids != 0).long()
    cache = run(model, ids[:, :21], mask=mask[:, :21]).past_key_values
    turn = run(model, ids[:, 21:28], cache, mask[:, :28])
    token = run(model, ids[:, 28:], turn.past_key_values, mask).logits
    for row, (n, k) in enumerate(zip(first, second, strict=True)):
        assert off(turn.logits[row, 7 - k :], case.logits[0, n : n + k]) < TOLERANCE
        assert off(token[row], case.logits[0, n + k : n + k + 1]) < TOLERANCE


@pytest.mark.parametrize("beams", [1, 3])
def test_generated_text(model: Any, case: synthetic.Case, beams: int) -> None:
    """With a cache as without, in a padded batch as alone, from embeddings as from ids."""
    settings = {
        "max_new_tokens": 6,
        "min_new_tokens": 6,
        "do_sample": False,
        "num_beams": beams,
        "pad_token_id": 0,
        "eos_token_id": 2,
    }
    rows = [case.ids[:, :n] for n in (5, 37)]
    alone = [model.generate(row, attention_mask=torch.ones_like(row), **settings) for row in rows]
    if beams == 1:
        for tokens in alone:
            wanted = reference.forward(case.state, case.config, tokens).argmax(-1)
            assert torch.equal(tokens[:, -6:], wanted[:, -7:-1])
    ids = torch.cat([torch.cat([torch.zeros(1, 32, dtype=torch.long), rows[0]], 1), rows[1]])
    mask = (ids != 0).long()
    embeddings = model.get_input_embeddings()(ids).detach()
    for inputs in ({"inputs": ids}, {"inputs": ids, "use_cache": False}, {"inputs_embeds": embeddings}):
        together = model.generate(**inputs, attention_mask=mask, **settings)
        for row, tokens in enumerate(alone):
            assert torch.equal(together[row, -6:], tokens[0, -6:])


def test_gradients(model: Any, case: synthetic.Case) -> None:
    """Of a random combination of all logits, by every parameter of the Mamba layers and the embedding."""
    ids = case.ids[:, :37]
    exact = {name: tensor.double().requires_grad_() for name, tensor in case.state.items()}
    logits = reference.forward(exact, case.config, ids)
    weights = torch.randn_like(logits)
    (logits * weights).sum().backward()
    model.train()
    (model(ids, use_cache=False).logits * weights).sum().backward()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    compared = [name for name in exact if ".mamba." in name or "embed_tokens" in name]
    assert len(compared) > 50
    for name in compared:
        assert off(parameters[name].grad, exact[name].grad) < 2e-5, name


def test_gradients_through_a_cache(model: Any, case: synthetic.Case) -> None:
    ids = case.ids[:, :20]
    first = model(ids[:, :18], use_cache=True)
    second = model(ids[:, 18:], past_key_values=first.past_key_values, use_cache=True)
    torch.cat([first.logits, second.logits], 1).square().sum().backward()
    got = model.model.layers[0].mamba.in_proj.weight.grad.clone()
    model.zero_grad()
    model(ids, use_cache=False).logits.square().sum().backward()
    torch.testing.assert_close(got, model.model.layers[0].mamba.in_proj.weight.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("limit", [(0.004, 0.02), (0.0, 0.03)])
def test_the_limit_in_the_config(model: Any, case: synthetic.Case, limit: tuple[float, float]) -> None:
    """The only limit there is: for the prompt and for single tokens alike."""
    config = {**case.config, "time_step_limit": list(limit)}
    wanted = reference.forward(case.state, config, case.ids[:, :20])
    assert off(case.logits[:, :20], wanted) > 1e-3
    model.config.time_step_limit = limit
    try:
        got = run(model, case.ids[:, :18])
        more = [run(model, case.ids[:, 18:19], got.past_key_values)]
        more.append(run(model, case.ids[:, 19:20], more[0].past_key_values))
    finally:
        model.config.time_step_limit = None
    assert off(torch.cat([got.logits, *(m.logits for m in more)], 1), wanted) < TOLERANCE


def test_kernels_get_the_same_limit(model: Any) -> None:
    mixer = model.model.layers[0].mamba
    assert mixer.time_step_limit in (None, (0.0, float("inf")))
    config = copy.deepcopy(model.config)
    config.time_step_limit = (0.5, 2.0)
    assert tuple(type(mixer)(config, layer_idx=0).time_step_limit) == (0.5, 2.0)


def test_a_bfloat16_model_keeps_its_state_in_float32(model: Any, case: synthetic.Case) -> None:
    cache = run(copy.deepcopy(model).bfloat16(), case.ids[:, :9]).past_key_values
    if hasattr(cache, "ssm_states"):
        state = cache.ssm_states[0]
    else:
        state = cache.layers[0].recurrent_states
        state = state[0] if isinstance(state, dict) else state
    assert state.dtype == torch.float32


def test_reset_leaves_nothing() -> None:
    cache: Any = HybridCache()
    cache.key_cache = [torch.ones(2, 1, 5, 4)]
    cache.value_cache = [torch.ones(2, 1, 5, 4)]
    cache.has_previous_state = True
    plain_scan.write_hybrid(cache, 3, torch.ones(2, 6, TAPS), torch.ones(2, 2, 3, 5))
    hybrid_cache_reset.reset(None)(cache)
    assert not cache.conv_states[3].any()
    assert not cache.ssm_states[3].any()
    assert cache.key_cache[0].shape == cache.value_cache[0].shape == (2, 0)
    assert plain_scan.read_hybrid(cache, 3) == (None, None)


def test_offloaded_weights(model: Any, case: synthetic.Case) -> None:
    accelerate = pytest.importorskip("accelerate")
    offloaded = accelerate.cpu_offload(copy.deepcopy(model), torch.device("cpu"))
    first = run(offloaded, case.ids[:, :18])
    got = torch.cat([first.logits, run(offloaded, case.ids[:, 18:19], first.past_key_values).logits], 1)
    assert off(got, case.logits[:, :19]) < TOLERANCE
    assert offloaded.model.layers[0].mamba.conv1d.weight.device.type == "meta"


def test_a_cache_that_records_its_past(model: Any, case: synthetic.Case) -> None:
    """The release itself sees to it: every input of the convolution is kept until the cache is cropped."""
    cache = run(model, case.ids[:, :9]).past_key_values
    if not hasattr(cache, "activate_past_recording"):
        pytest.skip("no such cache in this release")
    cache.activate_past_recording()
    got = [run(model, case.ids[:, n : n + 3], cache).logits for n in (9, 12)]
    inputs = cache.layers[0].conv_states[0]
    assert inputs.shape[-1] > TAPS
    whole = run(model, case.ids[:, :15]).past_key_values.layers[0].conv_states[0]
    torch.testing.assert_close(inputs[..., -TAPS:], whole)
    if not hasattr(type(model.model.layers[0].mamba), "torch_forward"):  # 5.14 is wrong
        assert off(torch.cat(got, 1), case.logits[:, 9:15]) < TOLERANCE


@pytest.mark.parametrize("name", ["seq_idx", "cu_seqlens"])
def test_packed_sequences_are_left_to_the_release(name: str) -> None:
    """Newer ones refuse them without kernels."""
    calls: list[dict[str, Any]] = []
    forward = plain_scan.forward(lambda *args, **kwargs: calls.append(kwargs))
    packed = {name: torch.zeros(1, 5, dtype=torch.int32)}
    forward(SimpleNamespace(layer_idx=0), torch.zeros(1, 5, 8), **packed)
    assert calls == [packed]
