"""One row per format: how a checkpoint comes to be quantized by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Row:
    """A format.

    Attributes:
        name: as the table prints it.
        needs: the module that has to be importable.
        config: makes transformers' quantization config; None for checkpoints that another tool quantizes.
        scheme: compressed-tensors' preset, for those.
        rounds_activations: whether the library quantizes activations too, so that logits are near the weights' only.
        because: why it runs on no CPU, where the library's message does not say so.
    """

    name: str
    needs: str
    config: Callable[[], Any] | None = None
    scheme: str | None = None
    rounds_activations: bool = False
    because: str = ""


def _bitsandbytes(**options: Any) -> Callable[[], Any]:
    def make() -> Any:
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(**options)

    return make


def _torchao(name: str, **options: Any) -> Callable[[], Any]:
    def make() -> Any:
        from torchao import quantization
        from transformers import TorchAoConfig

        return TorchAoConfig(getattr(quantization, name)(**options))

    return make


def _opaque_int4() -> Any:
    from torchao.prototype.quantization.int4.inference_workflow import PrototypeInt4WeightOnlyConfig
    from transformers import TorchAoConfig

    # Its kernel wants rows in multiples of 16, which the tiny model's in_proj lacks and the published models' have.
    odd = [f"model.layers.{n}.{inner}mamba.in_proj" for n in range(30) for inner in ("", "mamba_decoder.")]
    return TorchAoConfig(PrototypeInt4WeightOnlyConfig(group_size=32), modules_to_not_convert=["lm_head", *odd])


def _quanto(weights: str) -> Callable[[], Any]:
    def make() -> Any:
        from transformers import QuantoConfig

        return QuantoConfig(weights=weights)

    return make


def _hqq() -> Any:
    from transformers import HqqConfig

    return HqqConfig(nbits=4, group_size=64)


def _fine_grained_fp8() -> Any:
    from transformers import FineGrainedFP8Config

    return FineGrainedFP8Config()


ROWS = (
    Row("bitsandbytes NF4", "bitsandbytes", _bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4")),
    Row("bitsandbytes int8", "bitsandbytes", _bitsandbytes(load_in_8bit=True, llm_int8_threshold=1e-9)),
    Row("torchao int8 weight-only", "torchao", _torchao("Int8WeightOnlyConfig", version=2)),
    Row(
        "torchao int4 weight-only",
        "torchao",
        _torchao("Int4WeightOnlyConfig", group_size=32),
        because="torchao packs it with mslk, for CUDA alone",
    ),
    Row("torchao int4 weight-only, for CPUs", "torchao", _opaque_int4),
    Row("torchao intx 4-bit weight-only", "torchao", _torchao("IntxWeightOnlyConfig", weight_dtype=torch.int4)),
    Row(
        "torchao int8 dynamic",
        "torchao",
        _torchao("Int8DynamicActivationInt8WeightConfig", version=2),
        rounds_activations=True,
    ),
    Row("torchao float8 weight-only", "torchao", _torchao("Float8WeightOnlyConfig", version=2)),
    Row("compressed-tensors W4A16", "compressed_tensors", scheme="W4A16"),
    Row("compressed-tensors W8A16", "compressed_tensors", scheme="W8A16"),
    Row("compressed-tensors FP8", "compressed_tensors", scheme="FP8_DYNAMIC", rounds_activations=True),
    Row("quanto int8", "optimum.quanto", _quanto("int8")),
    Row("quanto int4", "optimum.quanto", _quanto("int4")),
    Row("quanto float8", "optimum.quanto", _quanto("float8")),
    Row("HQQ", "hqq", _hqq),
    Row("fine-grained FP8", "transformers", _fine_grained_fp8),
)
