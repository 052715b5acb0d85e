"""compressed-tensors' formats, weight by weight, against an independent reading of them."""

from __future__ import annotations

import importlib.metadata
import itertools
from typing import Any

import pytest
import torch

from support import synthetic
from support.compressed import dequantized
from zamba_compat import SharingMap
from zamba_compat.checkpoint.dtypes import from_torch
from zamba_compat.checkpoint.resolving import compressed
from zamba_compat.checkpoint.resolving.compressed import Compressed
from zamba_compat.errors import CheckpointError, UnsupportedReleaseError

pytest.importorskip("compressed_tensors")

WAYS = [*itertools.product(["w4a16", "w8a16"], [8, -1], [True, False]), ("fp8", 128, True)]
ZAMBA2 = SharingMap.from_config(synthetic.make_config("7B"))
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def weight(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    made = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    return (made + 0.3).to(dtype)


@pytest.mark.parametrize(("name", "group", "symmetric"), WAYS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_value_goes_to_the_nearest_level(name: str, group: int, symmetric: bool, dtype: torch.dtype) -> None:
    method, given = Compressed(name, group, symmetric), weight(50, 24, dtype)
    parts = method.quantize(given, "w")
    got, scale = dequantized(parts), parts["weight_scale"].double()
    step = scale.repeat_interleave(24 // scale.shape[1], 1)
    error = (got - given.double()).abs()
    if name == "fp8":  # 3 bits after the leading one
        assert (error <= given.double().abs() * 2**-4 + step * 2**-10).all()
    else:
        # The outermost level on the positive side lies half a step inside; a scale in 16 bits is rounded itself.
        assert (error <= step * 0.5 + given.double().abs().amax() * 2**-7).all()
    assert torch.equal(
        method.dequantized({**parts, "weight_scale": parts["weight_scale"].float()}).double(), got.float()
    )


@pytest.mark.parametrize(("name", "group", "symmetric"), WAYS)
@pytest.mark.parametrize("shape", [(3, 8), (100, 40), (65, 64)])
def test_announced_and_in_pieces(
    name: str, group: int, symmetric: bool, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    method, given = Compressed(name, group, symmetric), weight(*shape, torch.bfloat16)
    whole = method.quantize(given, "w")
    announced = method.announce("BF16", shape)
    assert announced == {end: (from_torch(part.dtype), tuple(part.shape)) for end, part in whole.items()}
    monkeypatch.setattr(compressed, "CHUNK", 1)
    pieces = method.quantize(given, "w")
    assert pieces.keys() == whole.keys() and all(torch.equal(pieces[end], whole[end]) for end in whole)


@pytest.mark.parametrize(("name", "group", "symmetric"), WAYS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_groups_of_zeros_and_of_next_to_nothing(name: str, group: int, symmetric: bool, dtype: torch.dtype) -> None:
    given = weight(32, 16, dtype)
    given[3] = 0
    given[5] = torch.finfo(dtype).smallest_normal / 4
    got = dequantized(Compressed(name, group, symmetric).quantize(given, "w"))
    assert (got[3] == 0).all() and got.isfinite().all()
    assert (got[5].abs() <= torch.finfo(dtype).smallest_normal).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", compressed.METHODS)
def test_nan_and_infinity_are_refused(name: str, value: float) -> None:
    given = weight(40, 16)
    given[-1, -1] = value
    with pytest.raises(CheckpointError, match=r"w: .*NaN or infinity"):
        Compressed(name, 8).quantize(given, "w")


def takes(method: Compressed, name: str, **more: Any) -> bool:
    return method.takes(name, more.get("dtype", "BF16"), more.get("shape", (64, 64)), ZAMBA2)


SHARED = [f"model.layers.{layer}.shared_transformer.feed_forward.down_proj" for layer in ZAMBA2.layers_of(0)]
IN_PROJ = "model.layers.0.mamba.in_proj"


def test_which_weights() -> None:
    method = Compressed("w4a16", 8)
    assert takes(method, f"{IN_PROJ}.weight") and takes(method, f"{SHARED[0]}.weight")
    assert not takes(method, "model.layers.0.mamba.conv1d.weight", shape=(64, 1, 4))
    assert not takes(method, "model.layers.0.input_layernorm.weight", shape=(64,))
    assert not takes(method, "model.embed_tokens.weight") and not takes(method, "lm_head.weight")
    with pytest.raises(CheckpointError, match="--dtype"):
        takes(method, f"{IN_PROJ}.weight", dtype="F64")
    with pytest.raises(CheckpointError, match=r"Groups of 8 do not divide its 60 columns.*--group-size"):
        takes(method, f"{IN_PROJ}.weight", shape=(64, 60))
    assert takes(Compressed("w4a16", -1), f"{IN_PROJ}.weight", shape=(64, 60))
    assert takes(Compressed("fp8"), f"{IN_PROJ}.weight", shape=(64, 60))


@pytest.mark.parametrize("word", ["in_proj", IN_PROJ, r"re:.*mamba\.in"])
def test_ignored_by_name_whole_name_or_pattern(word: str) -> None:
    from compressed_tensors.utils.match import match_name

    method = Compressed("w4a16", 8, ignore=(word,))
    listed = method.words(ZAMBA2)["ignore"]
    assert not takes(method, f"{IN_PROJ}.weight", shape=(64, 60))
    assert takes(method, "model.layers.0.mamba.out_proj.weight")
    assert any(match_name(IN_PROJ, pattern) for pattern in listed)
    assert not any(match_name("model.layers.0.mamba.out_proj", pattern) for pattern in listed)


@pytest.mark.parametrize("named", SHARED[:2])
def test_a_shared_module_is_ignored_under_all_its_names(named: str) -> None:
    method = Compressed("w4a16", 8, ignore=(named,))
    assert {*SHARED} <= {*method.words(ZAMBA2)["ignore"]}
    assert not takes(method, f"{SHARED[0]}.weight")
    other = f"model.layers.{ZAMBA2.canonical_layer(1)}.shared_transformer.feed_forward.down_proj.weight"
    assert takes(method, other)


def test_shared_blocks_kept() -> None:
    from compressed_tensors.utils.match import match_name

    method = Compressed("w4a16", 8, skip_shared=True)
    assert not takes(method, f"{SHARED[0]}.weight") and takes(method, f"{IN_PROJ}.weight")
    listed = method.words(ZAMBA2)["ignore"]
    for module in (SHARED[-1], "model.qkv_proj", "model.o_proj", "model.feed_forward.gate_up_proj_adapter_list.0.A"):
        assert any(match_name(module, pattern) for pattern in listed), module
    assert not any(match_name(IN_PROJ, pattern) for pattern in listed)


@pytest.mark.parametrize(("name", "group", "symmetric"), WAYS)
def test_the_library_reads_what_config_json_says(name: str, group: int, symmetric: bool) -> None:
    from compressed_tensors.quantization import QuantizationConfig

    words = Compressed(name, group, symmetric).words(ZAMBA2, ["score"])
    assert words.pop("version") == importlib.metadata.version("compressed-tensors")
    assert words["ignore"] == ["lm_head", "score"] and words["quant_method"] == "compressed-tensors"
    read = QuantizationConfig.model_validate(words)
    weights = read.config_groups["group_0"].weights  # type: ignore[union-attr]
    assert weights is not None
    assert weights.num_bits == (4 if name == "w4a16" else 8)
    assert weights.symmetric == symmetric
    assert weights.group_size == (group if group > 0 and name != "fp8" else None)


def test_what_makes_no_sense() -> None:
    for options, match in (
        ({"group_size": 0}, "no size of groups"),
        ({"ignore": ("re:(",)}, "no pattern"),
        ({"name": "fp8", "symmetric": False}, "no zero points"),
    ):
        with pytest.raises(CheckpointError, match=match):
            Compressed(**{"name": "w4a16", **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(("installed", "match"), [(None, "not installed"), ("0.15.0", "0.15.0 is not one")])
def test_releases_of_the_library(installed: str | None, match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if installed is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(UnsupportedReleaseError, match=match):
        Compressed("w4a16").require()
