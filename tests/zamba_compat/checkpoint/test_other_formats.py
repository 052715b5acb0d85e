"""Checkpoints of every quantizer, from layout to layout: names and bytes, or a refusal that names the format."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from support import synthetic
from support.other_quantizers import FORMATS, quantized, write
from zamba_compat.errors import CheckpointError, DivergentCopiesError
from zamba_compat.layout.quant_state_names import base_of
from zamba_compat.layout.sharing import SharingMap
from zamba_compat.operations.convert import Options, convert
from zamba_compat.operations.inspect import inspect

CONFIG = synthetic.make_config("7B")
SHARING = SharingMap.from_config(CONFIG)
STATE = synthetic.make_state(CONFIG)
CARRIED = [format for format in FORMATS if format != "quanto"]
OTHERS = [format for format in CARRIED if format not in ("nf4", "int8")]
LAYOUTS = ("hub", "expanded", "later-layer", "split", "wrong-slots")
WRAPPERS = ("", "module.", "_orig_mod.", "base_model.model.", "model.", "backbone.", "_fsdp_wrapped_module.")
FOREIGN = ("student.", "ema.model.")


def laid_out(state: synthetic.State, layout: str) -> synthetic.State:
    if layout == "hub":
        return state
    if layout == "expanded":
        return synthetic.to_expanded(state, CONFIG)
    return synthetic.to_partial(state, CONFIG, cast(Literal["later-layer", "split", "wrong-slots"], layout))


def read(directory: Path) -> tuple[dict[str, tuple[torch.dtype, bytes]], list[dict[str, str]]]:
    """Every tensor's dtype and bytes, and the metadata of each file."""
    tensors, headers = {}, []
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            headers.append(dict(file.metadata()))
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)
                tensors[name] = tensor.dtype, tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return tensors, headers


def method(directory: Path) -> Any:
    return json.loads((directory / "config.json").read_text(encoding="utf-8"))["quantization_config"]


@given(
    format=st.sampled_from(CARRIED),
    layout=st.sampled_from(LAYOUTS),
    prefixes=st.lists(st.lists(st.sampled_from(WRAPPERS + FOREIGN), max_size=2).map("".join), min_size=1, max_size=2),
    sharded=st.booleans(),
)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_the_same_bytes_or_an_error_that_names_tensors(
    format: str, layout: str, prefixes: list[str], sharded: bool
) -> None:
    hub = quantized(STATE, format)
    stored = {
        prefixes[n % len(prefixes)] + name: tensor for n, (name, tensor) in enumerate(laid_out(hub, layout).items())
    }
    with TemporaryDirectory() as directory:
        top = Path(directory)
        size = 100_000 if sharded else None
        wanted, headers = read(write(top / "wanted", hub, CONFIG, format))
        source = write(top / "source", stored, CONFIG, format, size)
        try:
            convert(source, top / "hub")
        except CheckpointError as error:
            assert any(word in prefix for prefix in prefixes for word in FOREIGN), error
            assert any(name in str(error) for name in stored), error
            return
        convert(top / "hub", top / "expanded", Options(layout="expanded", max_shard_size=str(size or 10**9)))
        convert(top / "expanded", top / "again")
        for made in ("hub", "again"):
            found, found_headers = read(top / made)
            assert found == wanted
            assert [len(header) for header in found_headers] == [len(header) for header in headers]
            assert method(top / made) == method(source)
        expanded, found_headers = read(top / "expanded")
        assert expanded == {alias: data for name, data in wanted.items() for alias in SHARING.aliases(name)}
        if format == "torchao":
            for header in found_headers:
                weights = {base_of(name) for name in expanded}
                assert sorted(json.loads(header["tensor_names"])) == sorted(weights)
                # what a type says is told from any other's by the length of the weight's name in it
                assert all(
                    header[weight] == headers[0][SHARING.canonical_key(weight)]
                    for weight in weights
                    if not any(prefixes)
                )


@pytest.mark.parametrize("format", OTHERS)
def test_inspect_names_the_format(format: str, tmp_path: Path) -> None:
    state = quantized(STATE, format)
    source = write(tmp_path / "source", synthetic.to_expanded(state, CONFIG), CONFIG, format)
    found = inspect(source).a
    assert found.quantization is not None
    count = sum(tensor.ndim == 2 and "layers." in name for name, tensor in STATE.items())
    shared = [name for name in STATE if SHARING.parse(name) and STATE[name].ndim == 2]
    copies = sum(len(SHARING.aliases(name)) for name in shared)
    assert found.quantization.weights == {format: count - len(shared) + copies}
    assert found.quantization.shared == copies
    assert found.missing == () and found.extra == () and found.faults == () and found.layout == "expanded"
    assert [len(block.stored) for block in found.blocks] == [len(SHARING.layers_of(b)) for b in range(2)]
    assert found.parameters == sum(tensor.numel() for tensor in STATE.values())
    assert {one.key for one in found.copies if one.equal} >= {
        SHARING.canonical_key(name) for name in state if SHARING.parse(name) and base_of(name) == name
    }


@pytest.mark.parametrize("format", OTHERS)
def test_copies_that_differ(format: str, tmp_path: Path) -> None:
    state = synthetic.to_expanded(quantized(STATE, format), CONFIG)
    last = SHARING.layers_of(0)[-1]
    name = next(name for name in state if f"layers.{last}." in name and "q_proj" in name and base_of(name) != name)
    state[name] = state[name] + 1
    source = write(tmp_path / "source", state, CONFIG, format)
    with pytest.raises(DivergentCopiesError, match="1 shared tensors"):
        convert(source, tmp_path / "refused")
    found = inspect(source).a
    assert found.layout == "divergent"
    assert [base_of(one.key) for one in found.copies if not one.equal] == [base_of(SHARING.canonical_key(name))]
    assert any("copies that differ" in fault for fault in found.faults)
    with pytest.raises(DivergentCopiesError, match="no mean"):
        convert(source, tmp_path / "refused", Options(resolve="mean"))
    convert(source, tmp_path / "untied", Options(resolve="untie"))
    tensors, _ = read(tmp_path / "untied")
    assert tensors[name][1] == state[name].numpy().tobytes()
    comparison = inspect(source, tmp_path / "untied").comparison
    assert comparison is not None and comparison.total.tensors == comparison.total.equal
    assert not comparison.only_a and not comparison.only_b


def test_two_checkpoints_in_one_format(tmp_path: Path) -> None:
    state = quantized(STATE, "GPTQ")
    a = write(tmp_path / "a", state, CONFIG, "GPTQ")
    name = "model.layers.0.mamba.in_proj.qweight"
    b = write(tmp_path / "b", {**state, name: state[name] + 1}, CONFIG, "GPTQ")
    found = inspect(a, b)
    assert found.ok and found.comparison is not None
    apart = [pair for pair in found.comparison.tensors if pair.distance != 0]
    assert [(pair.a, pair.distance) for pair in apart] == [(name, None)]
    assert "in the format of GPTQ" in apart[0].reason


def test_quanto_is_refused_by_its_name(tmp_path: Path) -> None:
    source = write(tmp_path / "source", quantized(STATE, "quanto"), CONFIG, "quanto")
    with pytest.raises(CheckpointError, match=r"\d+ in the format of quanto: transformers reads no checkpoint"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    found = inspect(source).a
    assert found.quantization is not None and set(found.quantization.weights) == {"quanto"}
    assert found.missing == () and found.extra == () and "quanto" in found.faults[0]


def test_what_cannot_be_carried(tmp_path: Path) -> None:
    state = quantized(STATE, "torchao")
    bare = synthetic.write_checkpoint(tmp_path / "bare", state, CONFIG)
    with pytest.raises(CheckpointError, match="format of torchao: the header"):
        convert(bare, tmp_path / "out")
    typed = write(tmp_path / "typed", state, CONFIG, "torchao")
    with pytest.raises(CheckpointError, match="header of a safetensors file holds"):
        convert(typed, tmp_path / "out", Options(format="torch"))
    with pytest.raises(CheckpointError, match="unquantized"):
        convert(typed, tmp_path / "out", Options(layout="zyphra-fork"))
    for options in (Options(dtype="bfloat16"), Options(quantize="nf4")):
        with pytest.raises(CheckpointError, match="is quantized"):
            convert(typed, tmp_path / "out", options)


def test_pickled_weights_of_gptq(tmp_path: Path) -> None:
    state = quantized(STATE, "GPTQ")
    source = write(tmp_path / "source", state, CONFIG, "GPTQ")
    convert(source, tmp_path / "pickled", Options(format="torch"))
    convert(tmp_path / "pickled", tmp_path / "back", Options(allow_pickle=True))
    assert read(tmp_path / "back")[0] == read(source)[0]
