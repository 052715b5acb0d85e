"""What holds of both layouts of Zyphra's: there and back, published shapes, what is missing, how each is recognised."""

from __future__ import annotations

import re
from types import ModuleType

import pytest
import torch

from support.synthetic import PATTERNS, Config, State, make_state
from support.zyphra import Info, classic, draw, fork_shapes, infos, is_unused, make, native_shapes, same
from zamba_compat.checkpoint.layouts import zyphra_fork, zyphra_native
from zamba_compat.checkpoint.layouts.zyphra import zyphra_words
from zamba_compat.errors import CheckpointError
from zamba_compat.layout.config import normalise_config
from zamba_compat.layout.published import PUBLISHED

HERE = "some/checkpoint"
SHAPES = {zyphra_fork: fork_shapes, zyphra_native: native_shapes}
# The standalone code has no grouped queries.
RUNNABLE = [
    pytest.param(layout, pattern, id=f"{layout.__name__.rpartition('.')[2]}-{pattern}")
    for layout in SHAPES
    for pattern in PATTERNS
    if layout is zyphra_fork or pattern != "grouped-query"
]
both = pytest.mark.parametrize("layout", SHAPES, ids=["fork", "native"])


def stored(layout: ModuleType, pattern: str, dtype: torch.dtype = torch.float32) -> tuple[Config, State]:
    """A small model in a layout: its config and its tensors."""
    config = classic(pattern)
    return zyphra_words(config), draw(SHAPES[layout](config), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("layout", "pattern"), RUNNABLE)
def test_there_and_back_is_the_identity_but_for_unused_adapters(
    layout: ModuleType, pattern: str, dtype: torch.dtype
) -> None:
    words, state = stored(layout, pattern, dtype)
    hub_config, recipes = layout.to_hub(infos(state), words, where=HERE)
    hub = make(recipes, state)
    words_again, recipes = layout.from_hub(infos(hub), hub_config, where=HERE)
    config = classic(pattern)
    blank = {name: torch.zeros_like(tensor) if is_unused(name, config) else tensor for name, tensor in state.items()}
    assert same(make(recipes, hub), blank)
    assert words_again == words if layout is zyphra_fork else words_again.items() >= words.items()


@pytest.mark.parametrize(("layout", "pattern"), RUNNABLE)
def test_there_and_back_is_the_identity_when_unused_adapters_are_kept(layout: ModuleType, pattern: str) -> None:
    words, state = stored(layout, pattern)
    hub_config, recipes = layout.to_hub(infos(state), words, where=HERE, keep_unused=True)
    hub = make(recipes, state)
    _, recipes = layout.from_hub(infos(hub), hub_config, where=HERE)
    assert same(make(recipes, hub), state)


@pytest.mark.parametrize(("layout", "pattern"), RUNNABLE)
def test_from_the_hub_and_back_is_the_identity(layout: ModuleType, pattern: str) -> None:
    config = classic(pattern)
    state = make_state(config)
    words, recipes = layout.from_hub(infos(state), config, where=HERE)
    theirs = make(recipes, state)
    assert {name: tuple(tensor.shape) for name, tensor in theirs.items()} == SHAPES[layout](config)
    config_again, recipes = layout.to_hub(infos(theirs), words, where=HERE)
    assert same(make(recipes, theirs), state)
    assert config_again.items() >= normalise_config(config).items()
    if layout is zyphra_fork:
        assert config_again.keys() - config.keys() <= {"gated_linear_unit", "use_shared_block_lora"}


@both
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes_from_headers_alone(name: str, layout: ModuleType) -> None:
    shape = PUBLISHED[name]
    names = {key: Info(size, "BF16") for key, size in SHAPES[layout](shape.config).items()}
    config, recipes = layout.to_hub(names, zyphra_words(shape.config), where=HERE)
    assert len(recipes) == shape.keys
    sizes = [recipe.shape or names[recipe.sources[0]].shape for recipe in recipes.values()]
    assert sum(torch.Size(size).numel() for size in sizes) == shape.parameters
    if layout is zyphra_native:
        assert {recipe.dtype for recipe in recipes.values()} == {None, "BF16"}
    assert config["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        *[
            (zyphra_fork, f"model.{name}")
            for name in (
                "embed_tokens.weight",
                "mamba_layers.3.mamba.in_proj.weight",
                "mamba_layers.2.mamba.D",
                "linear_layers.4.weight",
                "blocks.1.self_attn.v_proj.weight",
                "blocks.1.feed_forward.linear_fc1_lora_A_list.3.weight",
                "final_layernorm.weight",
            )
        ],
        (zyphra_native, "embedding.weight"),
        *[
            (zyphra_native, f"decoder.{name}")
            for name in (
                "layers.3.mixer.in_proj.0.weight",
                "block_map.5.weight",
                "blocks.1.sa.mixer.linear_qkv.weight",
                "blocks.0.mlp.mixer.linear_fc1_lora_B_list.2.weight",
                "blocks.1.mlp.norm.weight",
            )
        ],
    ],
)
def test_a_missing_tensor_is_named(layout: ModuleType, name: str) -> None:
    words, state = stored(layout, "7B")
    del state[name]
    with pytest.raises(CheckpointError, match=rf"{HERE}: These tensors are missing: {re.escape(name)}\.") as error:
        layout.to_hub(infos(state), words, where=HERE)
    assert error.value.where == HERE and error.value.remedy


@pytest.mark.parametrize(
    ("layout", "one"), [(zyphra_fork, "model.linear_layers.0.weight"), (zyphra_native, "decoder.block_map.5.weight")]
)
def test_recognised_by_names(layout: ModuleType, one: str) -> None:
    config = classic("7B")
    for written, shapes in SHAPES.items():
        assert layout.recognise(shapes(config), {}) == (layout is written)
    assert layout.recognise([one], {})
    assert not layout.recognise(make_state(config), config)
    assert not layout.recognise([], zyphra_words(config))
