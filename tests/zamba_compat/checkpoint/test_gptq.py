"""GPTQ on layers that are streamed: against the reference forward, the definition, and rounding to nearest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from _tiny.perplexity import perplexity
from support import synthetic
from support.compressed import dequantized, dequantized_state
from zamba_compat import SharingMap
from zamba_compat.checkpoint.resolving import gptq
from zamba_compat.checkpoint.resolving.compressed import Compressed
from zamba_compat.checkpoint.resolving.streamed_layers import Layers
from zamba_compat.errors import CheckpointError
from zamba_compat.layout.config import read_config
from zamba_compat.operations.convert import Options, convert

pytest.importorskip("compressed_tensors")

TINY = Path(__file__).parents[2] / "fixtures" / "tiny"


def layers_of(state: synthetic.State, config: synthetic.Config) -> Layers:
    config = {"mamba_ngroups": 1, **config}
    return Layers(config, SharingMap.from_config(config), "model.", state.__getitem__)


def run(model: Layers, ids: Tensor) -> Tensor:
    """The logits, layer by layer."""
    embedded = hidden = model.embed(ids)
    for index in range(model.sharing.num_layers):
        position, layer, mixer = model.position(index), model.layer(index), model.mixer(index)
        x = hidden
        if position is not None:
            x = x + layer.linear(model.run_block(model.block(position.block), position.index, x, embedded), "linear")[0]
        bias = model.sharing.linear_bias
        (projected,) = mixer.linear(model.norm(x, mixer["input_layernorm.weight"]), "mamba.in_proj", bias=bias)
        hidden = hidden + mixer.linear(model.between(mixer, projected), "mamba.out_proj", bias=bias)[0]
    hidden = model.norm(hidden, model.read("model.final_layernorm.weight").float())
    return hidden @ model.read("model.embed_tokens.weight").float().T


VARIANTS = [
    ("7B", {}),
    ("1.2B", {}),
    ("2.7B", {}),
    ("1.2B", {"use_long_context": True}),
    ("7B", {"add_bias_linear": True}),
    ("7B", {"hidden_act": "silu", "time_step_limit": (0.01, 0.1)}),
]


@pytest.mark.parametrize(("pattern", "overrides"), VARIANTS, ids=str)
def test_the_layers_are_the_model(pattern: str, overrides: dict[str, object]) -> None:
    config = synthetic.make_config(pattern, **overrides)
    state, ids = synthetic.make_state(config), synthetic.make_ids(config, 40)
    for name in SharingMap.from_config(config).hub_keys():
        if name not in state:  # biases of linears
            state[name] = torch.randn(len(state[f"{name.removesuffix('bias')}weight"])) / 10
    wanted = synthetic.forward(state, config, ids)[0]
    got = run(layers_of(state, config), ids[0]).double()
    assert torch.linalg.vector_norm(got - wanted) < 1e-5 * torch.linalg.vector_norm(wanted)


def inputs(columns: int, tokens: int = 400) -> Tensor:
    """Correlated columns, the first ones larger."""
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5 + torch.eye(columns)
    return torch.randn(tokens, columns, generator=generator) @ mixing * torch.linspace(2, 0.1, columns)


@pytest.mark.parametrize("group", [16, 64, -1])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_outputs_change_less_than_by_rounding_to_nearest(
    group: int, symmetric: bool, act_order: bool, dtype: torch.dtype
) -> None:
    x = inputs(192)
    weight = torch.randn(48, 192, generator=torch.Generator().manual_seed(2)).to(dtype)
    method = Compressed("w4a16", group, symmetric, act_order=act_order)
    nearest = dequantized(method.quantize(weight, "w"))
    rounded = dequantized(gptq.round_weight(weight, x.T @ x, method, "w"))

    def error(values: Tensor) -> float:
        return float(torch.linalg.vector_norm(x.double() @ (values - weight.double()).T))

    assert error(rounded) < 0.8 * error(nearest)


def test_uncorrelated_inputs_leave_rounding_to_nearest() -> None:
    weight = torch.randn(16, 32, generator=torch.Generator().manual_seed(2))
    method = Compressed("w4a16", 16)
    nearest, rounded = method.quantize(weight, "w"), gptq.round_weight(weight, 3 * torch.eye(32), method, "w")
    assert all(torch.equal(nearest[end], rounded[end]) for end in nearest)


def test_one_column_after_another_by_the_definition() -> None:
    """Optimal brain quantization: the rest of the columns moves to the least-squares answer, one column at a time."""
    x = inputs(8).double()
    weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(2))
    method = Compressed("w4a16", -1)
    h = x.T @ x
    h += gptq.DAMPING * h.diagonal().mean() * torch.eye(8)
    scale, zero = method.scales(weight, "w")
    left = weight.double()
    for column in range(8):
        rounded = method.nearest(left[:, column].float(), scale[:, 0], zero[:, 0]).double()
        inverse = torch.linalg.inv(h[column:, column:])
        error = (left[:, column] - rounded) / inverse[0, 0]
        left[:, column:] -= error[:, None] * inverse[0]
        left[:, column] = rounded
    got = dequantized(gptq.round_weight(weight, (x.T @ x).float(), method, "w"))
    assert torch.allclose(got, left, atol=1e-5)


def test_columns_that_no_input_reached() -> None:
    x = inputs(32)
    x[:, 5] = 0
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(2))
    method = Compressed("w4a16", -1)
    got = dequantized(gptq.round_weight(weight, x.T @ x, method, "w"))
    assert torch.equal(got[:, 5], dequantized(method.quantize(weight, "w"))[:, 5])
    nothing = gptq.round_weight(weight, torch.zeros(32, 32), method, "w")
    assert torch.equal(nothing["weight_packed"], method.quantize(weight, "w")["weight_packed"])


def test_nan_is_refused() -> None:
    with pytest.raises(CheckpointError, match="NaN"):
        gptq.round_weight(torch.ones(4, 8), torch.full((8, 8), torch.nan), Compressed("w4a16", 8), "w")


@pytest.mark.parametrize("pattern", ["7B", "1.2B"])
def test_a_shared_weight_sees_the_inputs_of_all_its_positions(pattern: str) -> None:
    """Hessians of a block, against the inputs of a model that runs whole."""
    case = synthetic.case(pattern)
    model = layers_of(case.state, case.config)
    for block in range(model.sharing.num_blocks):
        name = f"{model.block(block).prefix}self_attn.o_proj.weight"
        wanted: list[Tensor] = []

        def watch(names: Sequence[str], y: Tensor, name: str = name, wanted: list[Tensor] = wanted) -> None:
            if name in names:
                wanted.append(y)

        embedded = hidden = model.embed(case.ids[0])
        for index in range(model.sharing.num_layers):
            position, layer, mixer = model.position(index), model.layer(index), model.mixer(index)
            x = hidden
            if position is not None:
                shared = model.block(position.block, watch)
                x = x + layer.linear(model.run_block(shared, position.index, x, embedded), "linear")[0]
            (projected,) = mixer.linear(model.norm(x, mixer["input_layernorm.weight"]), "mamba.in_proj")
            hidden = hidden + mixer.linear(model.between(mixer, projected), "mamba.out_proj")[0]
        assert len(wanted) == len(model.sharing.layers_of(block))
        found: dict[str, Tensor] = {}

        def keep(weight: Tensor, hessian: Tensor, method: Compressed, where: str, found: object = found) -> object:
            found[where] = hessian.clone()  # type: ignore[index]
            return method.quantize(weight, where)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gptq, "round_weight", keep)
            gptq._block(model, [case.ids[0]], Compressed("w4a16", 8), frozenset([name]), block)
        total = torch.cat(wanted)
        assert torch.allclose(found[name], total.T @ total, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Source code that is not in the text measured on."""
    from _tiny.corpus import source_code

    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(source_code().train[:6000].decode(errors="ignore"), encoding="utf-8")
    return path


@pytest.mark.slow
def test_the_tiny_model_is_better_off(text: Path, tmp_path: Path) -> None:
    held_out = (TINY / "text_base.txt").read_bytes()[:4096]
    found = {}
    for name, more in (
        ("nearest", {}),
        ("gptq", {"gptq": str(text)}),
        ("ordered", {"gptq": str(text), "act_order": True}),
    ):
        out = tmp_path / name
        convert(TINY / "base", out, Options(quantize="w4a16", group_size=64, **more))  # type: ignore[arg-type]
        state = dequantized_state(load_file(out / "model.safetensors"))
        model = layers_of({key: tensor.float() for key, tensor in state.items()}, read_config(out))
        with torch.inference_mode():
            found[name] = perplexity(lambda ids, m=model: torch.stack([run(m, row) for row in ids]), held_out)  # type: ignore[misc]
    assert max(found["gptq"], found["ordered"]) < found["nearest"], found
    assert "Rounded by GPTQ" in (tmp_path / "gptq" / "README.md").read_text()


def test_what_it_is_not_for(tmp_path: Path, text: Path) -> None:
    config = synthetic.make_config(synthetic.ZAMBA1)
    synthetic.write_checkpoint(tmp_path / "one", synthetic.make_state(config), config)
    with pytest.raises(CheckpointError, match=r"Zamba \(v1\)"):
        convert(tmp_path / "one", tmp_path / "made", Options(quantize="w4a16", group_size=-1, gptq=str(text)))
    config = synthetic.make_config("7B")
    synthetic.write_checkpoint(tmp_path / "two", synthetic.make_state(config), config)
    with pytest.raises(CheckpointError, match="tokenizer"):
        convert(tmp_path / "two", tmp_path / "made", Options(quantize="w4a16", group_size=8, gptq=str(text)))
    with pytest.raises(CheckpointError, match="cannot be read"):
        convert(tmp_path / "two", tmp_path / "made", Options(quantize="w4a16", group_size=8, gptq=str(tmp_path / "no")))
