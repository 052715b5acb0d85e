"""Cached, padded, batched and beamed decoding equal uncached single runs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from conformance.helpers import Checkpoint, assert_close, load
from conformance.helpers import case as make_case
from conformance.mending import LATER_SCANS, SCANS, builds
from support import synthetic

pytestmark = builds()

# Before 4.52 they are repeated in the wrong order.
TWO_GROUPS = pytest.mark.mended_by("zamba2-plain-scan-hybrid-cache", when=lambda p: p["pattern"] == "7B", fixed="4.52")

BEAMS = pytest.mark.parametrize(  # what is done with beams does not depend on the pattern
    ("pattern", "beams"), [("1.2B", 1), ("2.7B", 1), ("7B", 1), ("7B", 3)], indirect=["pattern"]
)
PROMPTS = (3, 16, 37)  # below, at and beyond chunk_size 16


@pytest.fixture(params=["1.2B", "2.7B", "7B"], scope="module")
def pattern(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def case(pattern: str) -> synthetic.Case:
    return make_case(pattern, length=46)


@pytest.fixture(scope="module")
def model(pattern: str, checkpoint: Checkpoint) -> Any:
    """One for all tests of a pattern: what computes leaves no trace in a model."""
    return load(checkpoint(pattern))


@torch.no_grad()
def forward(model: Any, ids: Tensor, **kwargs: Any) -> Any:
    return model(ids, use_cache=True, **kwargs)


@pytest.mark.mended_by(*SCANS, when=lambda p: p["prompt"] > 16)
@TWO_GROUPS
@pytest.mark.parametrize("prompt", PROMPTS)
def test_one_token_at_a_time(model: Any, case: synthetic.Case, prompt: int) -> None:
    first = forward(model, case.ids[:, :prompt])
    got, cache = [first.logits], first.past_key_values
    for position in range(prompt, prompt + 5):
        step = continued(model, case.ids[:, position : position + 1], cache, position)
        got.append(step.logits)
        cache = step.past_key_values
    assert_close(torch.cat(got, 1), case.logits[:, : prompt + 5])


@pytest.mark.mended_by(*SCANS)
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("more", [2, 5, 9])
def test_several_tokens_after_a_cache(model: Any, case: synthetic.Case, prompt: int, more: int) -> None:
    first = forward(model, case.ids[:, :prompt])
    second = continued(model, case.ids[:, prompt : prompt + more], first.past_key_values, prompt)
    assert_close(second.logits, case.logits[:, prompt : prompt + more])
    if prompt + more < case.ids.shape[1]:
        third = continued(model, case.ids[:, prompt + more : prompt + more + 1], second.past_key_values, prompt + more)
        assert_close(third.logits, case.logits[:, prompt + more : prompt + more + 1])


def continued(model: Any, ids: Tensor, cache: Any, past: int, mask: Tensor | None = None, **kwargs: Any) -> Any:
    positions = torch.arange(past, past + ids.shape[1])
    if mask is None:
        mask = torch.ones(ids.shape[0], past + ids.shape[1], dtype=torch.long)
    try:
        return forward(model, ids, past_key_values=cache, cache_position=positions, attention_mask=mask, **kwargs)
    except TypeError:  # releases that count the tokens themselves
        return forward(model, ids, past_key_values=cache, attention_mask=mask, **kwargs)


@pytest.mark.mended_by(*SCANS)
@pytest.mark.parametrize("length", PROMPTS)
def test_left_padding(model: Any, case: synthetic.Case, length: int) -> None:
    whole = case.ids.shape[1]
    ids = torch.cat([torch.cat([torch.zeros(1, whole - length, dtype=torch.long), case.ids[:, :length]], 1), case.ids])
    mask = torch.ones_like(ids)
    mask[0, : whole - length] = 0
    for use_cache in (False, True):
        with torch.no_grad():
            out = model(ids, attention_mask=mask, use_cache=use_cache).logits
        assert_close(out[0, whole - length :], case.logits[0, :length])
        assert_close(out[1], case.logits[0])


# Stock chooses the same wrong tokens either way, but for these.
@pytest.mark.mended_by(*SCANS, when=lambda p: p["beams"] == 1 and p["pattern"] in ("1.2B", "2.7B"))
@TWO_GROUPS
@BEAMS
def test_generate_with_and_without_cache(model: Any, case: synthetic.Case, beams: int) -> None:
    ids = case.ids[:, :37]
    runs = [generate(model, ids, num_beams=beams, use_cache=use_cache) for use_cache in (True, False)]
    assert torch.equal(runs[0], runs[1])


@pytest.mark.mended_by(*SCANS, *LATER_SCANS)
@pytest.mark.parametrize("start", [1, 7, 30])
def test_padding_between_tokens(model: Any, case: synthetic.Case, start: int) -> None:
    """Packed turns of a chat, say: padding in the middle of one row changes neither row, nor the token after it."""
    gap, last = 4, case.ids.shape[1] - 5
    padded = torch.cat([case.ids[:, :start], torch.zeros(1, gap, dtype=torch.long), case.ids[:, start:last]], 1)
    ids = torch.cat([padded, case.ids[:, : last + gap]])
    mask = torch.ones_like(ids)
    mask[0, start : start + gap] = 0
    positions = mask.cumsum(-1) - 1
    for use_cache in (False, True):
        with torch.no_grad():
            out = model(ids, attention_mask=mask, position_ids=positions, use_cache=use_cache)
        assert_close(out.logits[0, mask[0].bool()], case.logits[0, :last])
        assert_close(out.logits[1], case.logits[0, : last + gap])
    following = torch.stack([case.ids[0, last : last + 1], case.ids[0, last + gap : last + gap + 1]])
    whole = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], 1)
    step = continued(model, following, out.past_key_values, ids.shape[1], whole, position_ids=positions[:, -1:] + 1)
    assert_close(step.logits[:, 0], torch.stack([case.logits[0, last], case.logits[0, last + gap]]))


@BEAMS
def test_generate_in_a_left_padded_batch(model: Any, case: synthetic.Case, beams: int) -> None:
    lengths = (5, 37)
    single = [generate(model, case.ids[:, :n], num_beams=beams)[:, n:] for n in lengths]
    batch = torch.zeros(2, 37, dtype=torch.long)
    for row, n in enumerate(lengths):
        batch[row, 37 - n :] = case.ids[0, :n]
    together = generate(model, batch, num_beams=beams, attention_mask=(batch != 0).long())[:, 37:]
    assert torch.equal(together, torch.cat(single))


def generate(model: Any, ids: Tensor, **kwargs: Any) -> Tensor:
    kwargs.setdefault("attention_mask", torch.ones_like(ids))
    return model.generate(
        ids, max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=2, **kwargs
    )


@pytest.mark.mended_by(*SCANS)
def test_generate_goes_on_from_a_cache(model: Any, case: synthetic.Case) -> None:
    """The second turn of a chat: several new tokens after a cache that an earlier generate returned."""
    ids = case.ids[:, :20]
    first = generate(model, ids, return_dict_in_generate=True, use_cache=True)
    turn = torch.cat([first.sequences, case.ids[:, 30:36]], 1)
    with_cache = generate(model, turn, past_key_values=first.past_key_values)
    assert torch.equal(with_cache, generate(model, turn))


@pytest.mark.mended_by("zamba2-hybrid-cache-reset")
def test_a_cache_that_is_reset_has_no_past(model: Any, case: synthetic.Case) -> None:
    cache = forward(model, case.ids[:, 20:29]).past_key_values
    if type(cache).__name__ != "Zamba2HybridDynamicCache":
        pytest.skip("a cache of all models: until 5.14 it keeps its length when it is reset")
    cache.reset()
    assert_close(forward(model, case.ids[:, :9], past_key_values=cache).logits, case.logits[:, :9])


@pytest.mark.mended_by("zamba2-embeddings-generation")
def test_generate_from_embeddings(model: Any, case: synthetic.Case) -> None:
    ids = case.ids[:, :20]
    embeddings = model.get_input_embeddings()(ids).detach()
    got = model.generate(
        inputs_embeds=embeddings,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=8,
        min_new_tokens=8,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=2,
    )
    assert torch.equal(got[:, -8:], generate(model, ids)[:, -8:])


def test_prompt_lookup(model: Any, case: synthetic.Case) -> None:
    """Drafts are verified several at a time; a release may refuse it for a stateful model, but not answer wrongly."""
    ids = torch.cat([case.ids[:, :12]] * 3, 1)
    want = generate(model, ids)
    try:
        got = generate(model, ids, prompt_lookup_num_tokens=3)
    except (ValueError, AttributeError, NotImplementedError, TypeError) as refusal:
        assert "assist" in str(refusal).lower() or "stateful" in str(refusal).lower(), refusal
        return
    assert torch.equal(got, want)


@pytest.mark.mended_by(*SCANS)
def test_gradients_add_up_over_the_uses_of_a_block(model: Any, case: synthetic.Case) -> None:
    ids = case.ids[:, :20]
    key = f"model.layers.{case.config['hybrid_layer_ids'][0]}.shared_transformer.feed_forward.down_proj.weight"
    model = copy.deepcopy(model).train()
    model(ids, use_cache=False).logits.square().mean().backward()
    state = {name: tensor.double() for name, tensor in case.state.items()}
    state[key].requires_grad_()
    synthetic.forward(state, case.config, ids).square().mean().backward()
    got = dict(model.named_parameters(remove_duplicate=False))[key].grad
    assert_close(got, state[key].grad, 1e-4)
