"""Every layout is recognised, checked from headers alone, and read and written under transformers' names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support import synthetic
from support.synthetic import Config, State
from zamba_compat.checkpoint.layouts.contents import Contents, arrange, outcomes, read_contents
from zamba_compat.checkpoint.reading.opening import Checkpoint, open_checkpoint
from zamba_compat.checkpoint.recipe import Recipe, compose
from zamba_compat.errors import CheckpointError, ConfigError, MissingTensorError

Opened = Callable[..., Checkpoint]
STEM = "model.layers.2.shared_transformer."
Q = f"{STEM}self_attn.q_proj.weight"


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    def write_and_open(state: State, config: Config) -> Checkpoint:
        return open_checkpoint(synthetic.write_checkpoint(tmp_path / str(len(list(tmp_path.iterdir()))), state, config))

    return write_and_open


def make(recipes: Mapping[str, Recipe], checkpoint: Checkpoint) -> State:
    made = {}
    for name, recipe in recipes.items():
        tensors = [checkpoint.read(source) for source in recipe.sources]
        made[name] = tensors[0] if recipe.make is None else recipe.make(*tensors)
    return made


def hub_recipes(contents: Contents) -> dict[str, Recipe]:
    return {name: contents.recipes[stored] for name, stored in contents.plan.sources.items()}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("pattern", ["1.2B", "7B", "three-blocks", synthetic.ZAMBA1])
@pytest.mark.parametrize("kind", ["hub", "expanded", "untied", "later-layer", "split", "wrong-slots"])
def test_layouts_are_recognised_and_read(pattern: str, kind: str, opened: Opened) -> None:
    config = synthetic.make_config(pattern)
    stored = state = synthetic.make_state(config)
    written = config
    if pattern in ("1.2B", synthetic.ZAMBA1) and kind == "wrong-slots":
        pytest.skip("one block has no other block's slots")
    if pattern == synthetic.ZAMBA1 and kind == "untied":
        pytest.skip("Zamba v1 has no such form")
    if kind == "expanded":
        stored = synthetic.to_expanded(state, config)
    elif kind == "untied":
        stored, written = synthetic.to_untied(synthetic.to_expanded(state, config), config)
        state = stored
    elif kind != "hub":
        stored = synthetic.to_partial(state, config, kind)  # type: ignore[arg-type]
    with opened(stored, written) as checkpoint:
        contents = read_contents(checkpoint)
        assert contents.layout == (kind if kind in ("hub", "expanded", "untied") else "partial")
        assert same(make(hub_recipes(contents), checkpoint), state)
        assert contents.prefix == "model." and not contents.quantized and not contents.unknown


@pytest.mark.parametrize("pattern", ["1.2B", "2.7B", "three-blocks", "single-use"])
def test_written_layouts(pattern: str, opened: Opened) -> None:
    config = synthetic.make_config(pattern)
    state = synthetic.make_state(config)
    expanded = synthetic.to_expanded(state, config)
    untied, untied_config = synthetic.to_untied(expanded, config)
    with opened(state, config) as checkpoint:
        contents = read_contents(checkpoint)
        for layout, wanted, blocks in (
            ("hub", state, config["num_mem_blocks"]),
            ("expanded", expanded, config["num_mem_blocks"]),
            ("untied", untied, untied_config["num_mem_blocks"]),
        ):
            written, recipes = arrange(layout, hub_recipes(contents), contents.config, contents)
            assert same(make(recipes, checkpoint), wanted)
            assert written["num_mem_blocks"] == blocks
            layers = [int(name.split(".")[2]) for name in recipes if ".layers." in name]
            assert layers == sorted(layers)
            assert next(iter(recipes)) == "model.embed_tokens.weight"
            shapes = {name: info.shape for name, info in outcomes(recipes, checkpoint.tensors).items()}
            assert shapes == {name: tuple(tensor.shape) for name, tensor in wanted.items()}


@pytest.mark.parametrize("layout", ["zyphra-fork", "zyphra-native"])
@pytest.mark.parametrize("pattern", synthetic.PUBLISHED)
def test_zyphra_layouts_and_back(layout: str, pattern: str, opened: Opened) -> None:
    config = synthetic.make_config(pattern, intermediate_size=256, n_mamba_heads=2)
    state = synthetic.make_state(config)
    with opened(synthetic.to_expanded(state, config), config) as checkpoint:
        contents = read_contents(checkpoint)
        written, recipes = arrange(layout, hub_recipes(contents), contents.config, contents)
        zyphra = make(recipes, checkpoint)
        sizes = outcomes(recipes, checkpoint.tensors)
        assert {n: i.shape for n, i in sizes.items()} == {n: tuple(t.shape) for n, t in zyphra.items()}
    assert not zyphra.keys() & {"model.layers.0.mamba.A_log"}
    with opened(zyphra, written) as checkpoint:
        contents = read_contents(checkpoint)
        assert contents.layout == layout
        assert same(make(hub_recipes(contents), checkpoint), state)
        again, recipes = arrange(layout, hub_recipes(contents), contents.config, contents)
        assert same(make(recipes, checkpoint), zyphra)
        assert {k: v for k, v in again.items() if k != "torch_dtype"} == {
            k: v for k, v in written.items() if k != "torch_dtype"
        }


def test_a_base_model_keeps_its_names(opened: Opened) -> None:
    config = synthetic.make_config("7B")
    bare = {key.removeprefix("model."): tensor for key, tensor in synthetic.make_state(config).items()}
    with opened(bare, config) as checkpoint:
        contents = read_contents(checkpoint)
        assert (contents.prefix, contents.layout) == ("", "hub")
        _, recipes = arrange("hub", hub_recipes(contents), contents.config, contents)
        assert recipes.keys() == bare.keys()


def test_heads(opened: Opened) -> None:
    config = synthetic.make_config("7B")
    state = synthetic.make_state(config)
    embedding = state["model.embed_tokens.weight"]
    with opened({**state, "lm_head.weight": embedding.clone()}, config) as checkpoint:
        contents = read_contents(checkpoint)
        assert contents.tied_head == "lm_head.weight"
        assert contents.plan.sources.keys() == state.keys()
    untied = {**config, "tie_word_embeddings": False}
    with opened({**state, "lm_head.weight": 2 * embedding}, untied) as checkpoint:
        contents = read_contents(checkpoint)
        assert contents.tied_head is None and "lm_head.weight" in contents.plan.sources
    with opened(state, untied) as checkpoint, pytest.raises(MissingTensorError, match=r"lm_head\.weight"):
        read_contents(checkpoint)
    classifier = {**config, "architectures": ["Zamba2ForSequenceClassification"], "num_labels": 3}
    with opened({**state, "score.weight": torch.zeros(3, 64)}, classifier) as checkpoint:
        contents = read_contents(checkpoint)
        _, recipes = arrange("hub", hub_recipes(contents), contents.config, contents)
        assert list(recipes)[-1] == "score.weight"


@pytest.mark.parametrize("dialect", ["classic", "current"])
def test_the_config_comes_out_in_the_words_every_release_reads(dialect: Any, opened: Opened) -> None:
    from zamba_compat.layout.config import to_release_config

    config = synthetic.make_config("7B")
    with opened(synthetic.make_state(config), to_release_config(config, dialect)) as checkpoint:
        contents = read_contents(checkpoint)
        written, _ = arrange("hub", hub_recipes(contents), contents.config, contents)
        assert written == config
        assert read_contents(checkpoint).notes == ()


def test_unknown_names_are_copied_when_allowed(opened: Opened) -> None:
    config = synthetic.make_config("7B")
    state = synthetic.make_state(config) | {"model.extra": torch.ones(2), "visual.patch.weight": torch.ones(1)}
    with (
        opened(state, config) as checkpoint,
        pytest.raises(CheckpointError, match=r"model\.extra, visual\.patch\.weight.*--allow-unknown"),
    ):
        read_contents(checkpoint)
        contents = read_contents(checkpoint, allow_unknown=True)
        assert contents.unknown == ("model.extra", "visual.patch.weight")
        assert not set(contents.unknown) & contents.plan.sources.keys()


def test_quantized_parts_follow_their_weight(opened: Opened) -> None:
    config = {
        **synthetic.make_config("7B"),
        "quantization_config": {"load_in_4bit": True, "quant_method": "bitsandbytes"},
    }
    state = synthetic.make_state(config)
    weight = state.pop(Q)
    state[Q] = torch.zeros(weight.numel() // 2, 1, dtype=torch.uint8)
    for part in ("absmax", "quant_map", "nested_absmax", "nested_quant_map", "quant_state.bitsandbytes__nf4"):
        state[f"{Q}.{part}"] = torch.zeros(3)
    eight = f"{STEM}self_attn.k_proj.weight"
    state[eight] = state[eight].to(torch.int8)
    state[eight.replace("weight", "SCB")] = torch.zeros(3)
    state[eight.replace("weight", "weight_format")] = torch.zeros((), dtype=torch.uint8)
    with opened(state, config) as checkpoint:
        contents = read_contents(checkpoint)
        assert contents.quantized and contents.layout == "hub"
        _, recipes = arrange("expanded", hub_recipes(contents), contents.config, contents)
        later = Q.replace("layers.2.", "layers.5.")
        assert recipes[f"{later}.absmax"] == Recipe((f"{Q}.absmax",))
        assert recipes[later.replace("q_proj.weight", "k_proj.SCB")].sources == (eight.replace("weight", "SCB"),)
        with pytest.raises(CheckpointError, match="unquantized"):
            arrange("zyphra-fork", hub_recipes(contents), contents.config, contents)
    state[Q] = state[Q][:-1]
    with opened(state, config) as checkpoint, pytest.raises(CheckpointError, match="another shape"):
        read_contents(checkpoint)


def test_zamba_v1_has_no_untied_form(opened: Opened) -> None:
    config = synthetic.make_config(synthetic.ZAMBA1)
    with opened(synthetic.make_state(config), config) as checkpoint:
        contents = read_contents(checkpoint)
        for layout, match in (
            ("untied", "one shared block"),
            ("zyphra-fork", "Zamba2"),
            ("hubb", "no layout to write"),
        ):
            with pytest.raises(CheckpointError, match=match):
                arrange(layout, hub_recipes(contents), contents.config, contents)


def test_other_names_than_any_layouts(opened: Opened) -> None:
    with (
        opened({"transformer.h.0.weight": torch.ones(2)}, synthetic.make_config("7B")) as checkpoint,
        pytest.raises(CheckpointError, match=r"transformer\.h\.0\.weight"),
    ):
        read_contents(checkpoint)


def test_a_config_that_shapes_do_not_prove(opened: Opened) -> None:
    config = synthetic.make_config("7B", vocab_size=320)
    state = synthetic.make_state(config)
    with opened(state, {k: v for k, v in config.items() if k != "mamba_d_conv"}) as checkpoint:
        contents = read_contents(checkpoint)
        assert contents.config["mamba_d_conv"] == 4
        assert "mamba_d_conv" in contents.notes[0]
    with (
        opened(state, {k: v for k, v in config.items() if k != "adapter_rank"}) as checkpoint,
        pytest.raises(CheckpointError, match="taken from the defaults: adapter_rank"),
    ):
        read_contents(checkpoint)
    with (
        opened(state, {k: v for k, v in config.items() if k != "num_mem_blocks"}) as checkpoint,
        pytest.raises(ConfigError, match="num_mem_blocks is missing"),
    ):
        read_contents(checkpoint)


def test_recipes_of_recipes() -> None:
    inner = {
        "sum": Recipe(("a", "b"), lambda a, b: a + b, (2,), "F32"),
        "c": Recipe(("c",)),
        "renamed": Recipe(("d",)),
    }
    values = {name: torch.full((2,), float(number)) for number, name in enumerate("abcd", 1)}

    def run(recipe: Recipe) -> Tensor:
        tensors = [values[name] for name in recipe.sources]
        return tensors[0] if recipe.make is None else recipe.make(*tensors)

    both = compose(Recipe(("c", "sum", "renamed"), lambda *t: torch.stack(t), (3, 2), "F32"), inner)
    assert both.sources == ("c", "a", "b", "d") and both.shape == (3, 2)
    assert torch.equal(run(both), torch.tensor([[3.0, 3.0], [3.0, 3.0], [4.0, 4.0]]))
    assert compose(Recipe(("renamed",)), inner) == Recipe(("d",))
    passed = compose(Recipe(("sum",)), inner)
    assert (passed.shape, passed.dtype) == ((2,), "F32") and torch.equal(run(passed), torch.full((2,), 3.0))
    plain = compose(Recipe(("c", "renamed"), lambda c, d: c - d, (2,), "F32"), inner)
    assert plain.sources == ("c", "d") and torch.equal(run(plain), torch.full((2,), -1.0))
