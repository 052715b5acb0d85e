"""Which stored tensor fills which parameter, and what becomes of copies that differ."""

from __future__ import annotations

import pytest
import torch

from support import synthetic
from zamba_compat.errors import CheckpointError, DivergentCopiesError, MissingTensorError
from zamba_compat.layout.plan import plan
from zamba_compat.layout.sharing import SharingMap

CONFIG = synthetic.make_config("7B")
SHARING = SharingMap.from_config(CONFIG)
STATE = synthetic.make_state(CONFIG)
Q = "model.layers.{}.shared_transformer.self_attn.q_proj.weight"
FIRST, *LATER = SHARING.layers_of(0)


def test_hub_layout_is_left_alone() -> None:
    layout = plan(STATE, SHARING)
    assert layout.is_identity
    assert dict(layout.sources) == {name: name for name in STATE}


@pytest.mark.parametrize("kind", ["later-layer", "split", "wrong-slots"])
def test_partial_layouts_map_to_the_hub_layout(kind: str) -> None:
    moved = synthetic.to_partial(STATE, CONFIG, kind)  # type: ignore[arg-type]
    layout = plan(moved, SHARING)
    assert not layout.is_identity
    assert sorted(layout.sources) == sorted(STATE)
    assert all(torch.equal(moved[source], STATE[name]) for name, source in layout.sources.items())


def test_equal_copies_are_dropped_after_comparing() -> None:
    expanded = synthetic.to_expanded(STATE, CONFIG)
    layout = plan(expanded, SHARING)
    assert sorted(layout.sources) == sorted(STATE)
    assert set(layout.sources.values()) | set(layout.unused) == set(expanded)
    assert layout.divergences(expanded.__getitem__) == []


def test_one_bit_is_a_difference() -> None:
    expanded = synthetic.to_expanded(STATE, CONFIG)
    expanded[Q.format(LATER[-1])].view(torch.int32)[0, 0] ^= 1
    (found,) = plan(expanded, SHARING).divergences(expanded.__getitem__)
    assert found.key == Q.format(FIRST)
    assert 0 < found.distance < 1e-6


def test_nan_copies_with_the_same_bits_are_equal() -> None:
    expanded = synthetic.to_expanded(STATE, CONFIG)
    for layer in (FIRST, *LATER):
        expanded[Q.format(layer)][0, 0] = float("nan")
    assert plan(expanded, SHARING).divergences(expanded.__getitem__) == []


@pytest.mark.parametrize("change", [lambda t: t.half(), lambda t: t[:-1]])
def test_copies_must_agree_in_dtype_and_shape(change) -> None:
    expanded = synthetic.to_expanded(STATE, CONFIG)
    expanded[Q.format(LATER[0])] = change(expanded[Q.format(LATER[0])])
    with pytest.raises(CheckpointError, match="agree in dtype and shape"):
        plan(expanded, SHARING).divergences(expanded.__getitem__)


def test_an_adapter_is_taken_from_its_own_position() -> None:
    """Its copies at other layers of the block are never used, so they may differ without untying anything."""
    expanded = synthetic.to_expanded(STATE, CONFIG)
    position = SHARING.position_of(LATER[0])
    key = f"model.layers.{FIRST}.shared_transformer.feed_forward.gate_up_proj_adapter_list.{position.index}.0.weight"
    expanded[key] = expanded[key] + 1
    layout = plan(expanded, SHARING)
    assert layout.divergences(expanded.__getitem__) == []
    assert layout.sources[key] == SHARING.at_layer(key, position.layer)


def test_misplaced_adapters_that_contradict_each_other() -> None:
    suffix = "shared_transformer.feed_forward.gate_up_proj_adapter_list.0.0.weight"
    right = f"model.layers.{FIRST}.{suffix}"
    others = [f"model.layers.{layer}.{suffix}" for layer in SHARING.layers_of(1)]
    state = {name: tensor for name, tensor in STATE.items() if name != right}
    state |= {name: STATE[right] + number for number, name in enumerate(others)}
    with pytest.raises(CheckpointError, match="none of them is where the adapter belongs"):
        plan(state, SHARING).divergences(state.__getitem__)
    # Beside the right one they mean nothing: Zyphra's fork keeps unused adapters in these slots.
    state[right] = STATE[right]
    layout = plan(state, SHARING)
    assert layout.divergences(state.__getitem__) == []
    assert layout.sources[right] == right


def test_missing_tensors_are_named_with_position_and_layer() -> None:
    state = synthetic.drop(STATE, "*adapter_list.3.1.weight", Q.format(FIRST))
    with pytest.raises(MissingTensorError) as error:
        plan(state, SHARING, where="somewhere")
    layer = SHARING.positions[3].layer
    assert f"adapter_list.3.1.weight (position 3, layer {layer})" in str(error.value)
    assert Q.format(FIRST) in str(error.value)
    assert "2 shared tensors" in str(error.value)
    assert "somewhere" in str(error.value)
    assert plan(state, SHARING, complete=False)


def test_choices() -> None:
    divergent = synthetic.to_divergent(STATE, CONFIG)
    layout, key = plan(divergent, SHARING), Q.format(FIRST)
    copies = torch.stack([divergent[Q.format(layer)] for layer in (FIRST, *LATER)])

    first, computed, found = layout.resolve(divergent.__getitem__, "first")
    assert first is layout and not computed and found
    _, computed, _ = layout.resolve(divergent.__getitem__, "mean")
    assert torch.equal(computed[key], copies.double().mean(0).float())
    with pytest.raises(DivergentCopiesError):
        layout.resolve(divergent.__getitem__, "error")

    kept, computed, _ = layout.resolve(divergent.__getitem__, "keep")
    untied, untied_config = synthetic.to_untied(divergent, CONFIG)
    assert not computed
    assert kept.sharing == SharingMap.from_config(untied_config) == SHARING.untied()
    assert sorted(kept.sources) == sorted(untied)
    assert all(torch.equal(divergent[source], untied[name]) for name, source in kept.sources.items())


def test_keep_fills_a_position_without_a_copy_from_the_first_one() -> None:
    divergent = synthetic.drop(synthetic.to_divergent(STATE, CONFIG), Q.format(LATER[-1]))
    kept, _, _ = plan(divergent, SHARING).resolve(divergent.__getitem__, "keep")
    assert kept.sources[Q.format(LATER[-1])] == Q.format(FIRST)


def test_quantized_copies_cannot_be_averaged() -> None:
    expanded = synthetic.to_expanded(STATE, CONFIG)
    for offset, layer in enumerate((FIRST, *LATER)):
        expanded[Q.format(layer)] = torch.full((4, 4), offset, dtype=torch.uint8)
    with pytest.raises(DivergentCopiesError, match="cannot be averaged"):
        plan(expanded, SHARING).resolve(expanded.__getitem__, "mean")


def test_a_base_models_names() -> None:
    bare = {name.removeprefix("model."): tensor for name, tensor in STATE.items()}
    assert plan(bare, SHARING).is_identity
    with pytest.raises(MissingTensorError, match=r" layers\.2\."):
        plan(synthetic.drop(bare, Q.format(FIRST).removeprefix("model.")), SHARING)


def test_row_30_blocks_that_differ_are_not_tied_by_a_config_that_lost_their_number() -> None:
    """Two blocks under num_mem_blocks = 1: neither kept apart, nor averaged, nor one of them taken."""
    layout = plan(STATE, SharingMap.from_config(CONFIG | {"num_mem_blocks": 1}), complete=False)
    for choice in ("keep", "mean", "first", "error"):
        with pytest.raises(CheckpointError, match="2 different blocks are stored, at layers 2, 3"):
            layout.resolve(STATE.__getitem__, choice)
