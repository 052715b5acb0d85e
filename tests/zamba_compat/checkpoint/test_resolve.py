"""What becomes of copies that differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from support import synthetic
from support.reference import forward, relative_difference
from support.synthetic import Config, State
from zamba_compat.checkpoint.layouts.contents import Contents, read_contents
from zamba_compat.checkpoint.reading.opening import Checkpoint, open_checkpoint
from zamba_compat.checkpoint.resolving.compare import compare, table
from zamba_compat.checkpoint.resolving.resolve import CHOICES, Resolution, resolve
from zamba_compat.errors import CheckpointError, DivergentCopiesError

CONFIG = synthetic.make_config("three-blocks")  # attention adapters, two uses of each block
STATE = synthetic.make_state(CONFIG)
DIVERGENT = synthetic.to_divergent(STATE, CONFIG, scale=0.1)
FIRST, SECOND = "model.layers.1.shared_transformer.", "model.layers.5.shared_transformer."
Q, UP, DOWN = "self_attn.q_proj.weight", "feed_forward.gate_up_proj.weight", "feed_forward.down_proj.weight"


class Source:
    """An open checkpoint and what is done with it."""

    def __init__(self, directory: Path, state: State, config: Config = CONFIG) -> None:
        self.checkpoint: Checkpoint = open_checkpoint(synthetic.write_checkpoint(directory, state, config))
        self.contents: Contents = read_contents(self.checkpoint)
        self.divergences, self.notes = compare(self.contents)

    def resolve(self, choice: str, adapter_rank: int | None = None) -> Resolution:
        return resolve(self.contents, choice, adapter_rank=adapter_rank)

    def make(self, resolution: Resolution) -> State:
        made = {}
        for name, recipe in resolution.recipes.items():
            tensors = [self.checkpoint.read(source) for source in recipe.sources]
            made[name] = tensors[0] if recipe.make is None else recipe.make(*tensors)
            assert recipe.shape in (None, tuple(made[name].shape))
        return made


@pytest.fixture
def divergent(tmp_path: Path) -> Iterator[Source]:
    source = Source(tmp_path / "divergent", DIVERGENT)
    with source.checkpoint:
        yield source


def logits(state: Mapping[str, Tensor], config: Config) -> Tensor:
    return forward(dict(state), config, synthetic.make_ids(CONFIG, 20))


def untied_logits(state: State) -> Tensor:
    return logits(*synthetic.to_untied(state, CONFIG))


def test_copies_are_compared(divergent: Source) -> None:
    assert len(divergent.divergences) == 3 * 8  # each block's tensors but its adapters
    assert all(0.08 < d.distance < 0.13 for d in divergent.divergences)
    assert "48 copies of adapters" in divergent.notes[0]
    text = table(divergent.divergences, divergent.contents.sharing).splitlines()
    assert text[0].split() == ["layer", "1", "layer", "2", "layer", "4"]
    assert len(text) == 9 and all(len(line.split()) == 4 for line in text[1:])


def test_error_names_every_block_and_tensor(divergent: Source) -> None:
    with pytest.raises(DivergentCopiesError) as error:
        divergent.resolve("error")
    for words in ("24 shared tensors", "layer 4", Q, "--resolve untie", str(divergent.checkpoint.path)):
        assert words in str(error.value)


@pytest.mark.parametrize("choice", CHOICES)
def test_equal_copies_need_no_choice(choice: str, tmp_path: Path) -> None:
    source = Source(tmp_path, synthetic.to_expanded(STATE, CONFIG))
    with source.checkpoint:
        assert not source.divergences and not source.notes
        resolution = source.resolve(choice)
        made = source.make(resolution)
        if choice != "absorb":
            assert all(recipe.make is None for recipe in resolution.recipes.values())
        assert made.keys() == STATE.keys() and all(torch.equal(made[name], STATE[name]) for name in STATE)
        assert not resolution.residuals and not resolution.config


def test_first_and_mean(divergent: Source) -> None:
    for choice, key in (("first", FIRST + Q), ("mean", FIRST + Q)):
        resolution = divergent.resolve(choice)
        made = divergent.make(resolution)
        copies = torch.stack([DIVERGENT[FIRST + Q], DIVERGENT[SECOND + Q]]).double()
        wanted = (copies[0] if choice == "first" else copies.mean(0)).float()
        assert made.keys() == STATE.keys() and torch.equal(made[key], wanted)
        residual = next(r for r in resolution.residuals if r.key == key)
        left = {
            name: ((DIVERGENT[name] - wanted).norm() / DIVERGENT[name].norm()).item()
            for name in (FIRST + Q, SECOND + Q)
        }
        assert dict(residual.left) == pytest.approx(left, rel=1e-5)
        assert residual.worst == max(residual.left.values())


def test_karcher_keeps_the_norm(divergent: Source) -> None:
    made = divergent.make(divergent.resolve("karcher"))
    a, b = DIVERGENT[FIRST + Q].double(), DIVERGENT[SECOND + Q].double()
    wanted = (a / a.norm() + b / b.norm()) / (a / a.norm() + b / b.norm()).norm() * (a.norm() + b.norm()) / 2
    torch.testing.assert_close(made[FIRST + Q].double(), wanted, rtol=1e-6, atol=1e-6)


def test_karcher_falls_back_to_the_mean_and_says_so(tmp_path: Path) -> None:
    state = {**DIVERGENT, SECOND + Q: -DIVERGENT[FIRST + Q]}
    source = Source(tmp_path, state)
    with source.checkpoint:
        resolution = source.resolve("karcher")
        assert not source.make(resolution)[FIRST + Q].any()
        assert FIRST + Q in resolution.notes[-1]
        assert {r.choice for r in resolution.residuals if r.key == FIRST + Q} == {"mean"}


def test_untie_is_exact(divergent: Source) -> None:
    resolution = divergent.resolve("untie")
    made, config = divergent.make(resolution), {**CONFIG, **resolution.config}
    untied, untied_config = synthetic.to_untied(DIVERGENT, CONFIG)
    assert config == untied_config
    assert made.keys() == untied.keys() and all(torch.equal(made[name], untied[name]) for name in untied)
    assert {r.worst for r in resolution.residuals} == {0.0}


def test_absorb_comes_closer_than_the_mean_at_every_position(divergent: Source) -> None:
    mean, absorbed = (divergent.resolve(choice) for choice in ("mean", "absorb"))
    assert absorbed.config == {}
    before = {r.key: r for r in mean.residuals}
    adapted = [r for r in absorbed.residuals if r.choice == "absorb"]
    assert len(adapted) == 3 * 4
    for residual in adapted:
        assert residual.left.keys() == before[residual.key].left.keys()
        assert all(left < before[residual.key].left[name] for name, left in residual.left.items())
    for residual in absorbed.residuals:
        if residual.choice == "mean":
            assert residual.left == before[residual.key].left


def test_absorb_keeps_what_the_rank_holds(tmp_path: Path) -> None:
    """Differences of rank 3 beside adapters of rank 8: with rank 14 nothing is lost but rounding."""
    state = synthetic.to_expanded(STATE, CONFIG)
    generator = torch.Generator().manual_seed(0)
    for name in (SECOND + Q, SECOND + UP, SECOND.replace("5", "7") + UP):
        rows, columns = state[name].shape
        factors = torch.randn(rows, 3, generator=generator), torch.randn(3, columns, generator=generator)
        state[name] = state[name] + 0.05 * factors[0] @ factors[1] / columns**0.5
    wanted = untied_logits(state)
    source = Source(tmp_path, state)
    with source.checkpoint:
        mean = source.make(source.resolve("mean"))
        resolution = source.resolve("absorb", adapter_rank=14)
        made = source.make(resolution)
        assert resolution.config == {"adapter_rank": 14}
        assert max(r.worst for r in resolution.residuals) < 1e-6
        assert made.keys() == STATE.keys()
        assert all(14 in t.shape for name, t in made.items() if "adapter_list" in name)
        assert relative_difference(logits(made, {**CONFIG, "adapter_rank": 14}), wanted) < 1e-5
        assert relative_difference(logits(mean, CONFIG), wanted) > 1e-3
        # Without more rank it is between the two.
        kept = source.resolve("absorb")
        assert max(r.worst for r in kept.residuals) > 1e-4
        assert kept.config == {}


def test_a_raised_rank_alone_changes_no_logits(tmp_path: Path) -> None:
    source = Source(tmp_path, STATE)
    with source.checkpoint:
        resolution = source.resolve("absorb", adapter_rank=11)
        made = source.make(resolution)
        assert relative_difference(logits(made, {**CONFIG, **resolution.config}), logits(STATE, CONFIG)) < 1e-12


@pytest.mark.parametrize(("choice", "rank"), [("mean", 16), ("absorb", 7), ("absorb", True)])
def test_ranks_that_make_no_sense(divergent: Source, choice: str, rank: int) -> None:
    with pytest.raises(CheckpointError, match="rank"):
        divergent.resolve(choice, adapter_rank=rank)


def test_a_position_without_a_copy(tmp_path: Path) -> None:
    state = synthetic.drop(DIVERGENT, SECOND + UP)
    wanted = dict(DIVERGENT, **{SECOND + UP: DIVERGENT[FIRST + UP]})
    source = Source(tmp_path, state)
    with source.checkpoint:
        resolution = source.resolve("untie")
        assert torch.equal(source.make(resolution)[SECOND + UP], wanted[SECOND + UP])
        keys = {r.key for r in source.resolve("absorb").residuals if r.choice == "absorb"}
        assert FIRST + UP not in keys  # one copy: nothing differs


@pytest.mark.parametrize("choice", ["first", "mean", "untie"])
def test_a_head_that_differs_from_the_embedding_it_is_tied_to(choice: str, tmp_path: Path) -> None:
    embedding = STATE["model.embed_tokens.weight"]
    source = Source(tmp_path, {**STATE, "lm_head.weight": embedding * 1.5})
    with source.checkpoint:
        assert [d.key for d in source.divergences] == ["model.embed_tokens.weight"]
        assert source.divergences[0].distance == pytest.approx(0.5)
        with pytest.raises(DivergentCopiesError, match="embed_tokens"):
            source.resolve("error")
        resolution = source.resolve(choice)
        made = source.make(resolution)
        if choice == "untie":
            assert resolution.config == {"tie_word_embeddings": False}
            assert torch.equal(made["lm_head.weight"], embedding * 1.5)
        else:
            assert "lm_head.weight" not in made
            factor = 1.0 if choice == "first" else 1.25
            torch.testing.assert_close(made["model.embed_tokens.weight"], factor * embedding)


def test_an_unknown_choice(divergent: Source) -> None:
    with pytest.raises(CheckpointError, match="karcher"):
        divergent.resolve("slerp")


@pytest.mark.parametrize("choice", ["mean", "karcher", "absorb"])
def test_quantized_copies_have_no_mean(choice: str, tmp_path: Path) -> None:
    state = dict(DIVERGENT)
    for name in (FIRST + Q, SECOND + Q):
        state[name] = (DIVERGENT[name] * 100).to(torch.int8)
        state[name.removesuffix("weight") + "SCB"] = torch.ones(len(state[name]))
    source = Source(tmp_path, state, {**CONFIG, "quantization_config": {"load_in_8bit": True}})
    with source.checkpoint:
        with pytest.raises(DivergentCopiesError, match="quantized"):
            source.resolve(choice)
        made = source.make(source.resolve("untie"))
        assert torch.equal(made[SECOND + Q], state[SECOND + Q])


@pytest.mark.parametrize("choice", ["untie", "absorb"])
def test_zamba_v1_has_one_block_without_adapters(choice: str, tmp_path: Path) -> None:
    config = synthetic.make_config(synthetic.ZAMBA1)
    state = synthetic.to_divergent(synthetic.make_state(config), config)
    source = Source(tmp_path, state, config)
    with source.checkpoint:
        with pytest.raises(CheckpointError, match="Zamba"):
            source.resolve(choice)
        assert source.resolve("mean").residuals
