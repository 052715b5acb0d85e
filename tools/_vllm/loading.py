"""A checkpoint through vLLM's load_weights: which keys it reads, which parameters it fills."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from .stand_ins import vllm

# Bytes that parameters hold before. What still is one may be stored so; filled, it is another one the second time.
MARKS = (0x5A, 0x3C)


@dataclass(frozen=True)
class Loaded:
    """What became of a checkpoint.

    Attributes:
        keys: how many it stores.
        unread: those whose tensor no parameter took.
        parameters: how many vLLM's model has.
        unfilled: those of which some element was not written.
        error: what vLLM raised; "" if nothing.
    """

    keys: int
    unread: tuple[str, ...]
    parameters: int
    unfilled: tuple[str, ...]
    error: str = ""

    @property
    def right(self) -> bool:
        return not (self.unread or self.unfilled or self.error)


def load(source: Path, checkpoint: Path, rank: int = 0, size: int = 1) -> Loaded:
    """Build vLLM's Zamba2ForCausalLM for a checkpoint and run its own load_weights.

    Args:
        source: the directory that holds vllm/.
        checkpoint: a directory with config.json and safetensors.
        rank, size: of the tensor-parallel group.
    """
    dtype = getattr(torch, json.loads((checkpoint / "config.json").read_text())["torch_dtype"])
    names = [name for name, _ in stored(checkpoint)]
    read: set[str] = set()
    parameters: set[str] = set()
    unfilled: dict[str, Tensor] = {}
    for attempt, mark in enumerate(MARKS):
        try:
            with vllm(source, dtype, rank, size):
                model = build(checkpoint, dtype)
                parameters = {name for name, _ in model.named_parameters()}
                read, marked = _fill(model, checkpoint, mark)
        except Exception as error:
            return Loaded(len(names), (), 0, (), f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        both = marked if attempt == 0 else {name: where & marked[name] for name, where in unfilled.items()}
        unfilled = {name: where for name, where in both.items() if where.any()}
        if not unfilled:
            break
    return Loaded(
        len(names), tuple(name for name in names if name not in read), len(parameters), tuple(sorted(unfilled))
    )


def build(checkpoint: Path, dtype: torch.dtype) -> Any:
    """vLLM's model with empty weights, its layers quantized as config.json says."""
    from transformers import AutoConfig
    from vllm.model_executor.models.zamba2 import Zamba2ForCausalLM

    config = AutoConfig.from_pretrained(checkpoint)
    words = json.loads((checkpoint / "config.json").read_text()).get("quantization_config")
    quantization = None
    if words is not None:
        if words.get("quant_method") != "compressed-tensors":
            raise ValueError(f"{words.get('quant_method')} is not checked here, only compressed-tensors")
        from vllm.model_executor.layers.quantization.compressed_tensors import compressed_tensors
        from vllm.model_executor.model_loader.utils import configure_quant_config

        quantization = compressed_tensors.CompressedTensorsConfig.from_config(words)
        configure_quant_config(quantization, Zamba2ForCausalLM)
    described = SimpleNamespace(
        model_config=SimpleNamespace(hf_config=config, dtype=dtype),
        cache_config=None,
        quant_config=quantization,
        scheduler_config=None,
    )
    return Zamba2ForCausalLM(vllm_config=described)


def stored(checkpoint: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a checkpoint, in the order of its files."""
    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                yield name, opened.get_tensor(name)


def _fill(model: nn.Module, checkpoint: Path, mark: int) -> tuple[set[str], dict[str, Tensor]]:
    """The keys that were read, and for every parameter which elements still hold the mark."""
    from vllm.model_executor.model_loader.weight_utils import default_weight_loader

    taken: dict[int, Tensor] = {}
    for parameter in dict(model.named_parameters()).values():
        parameter.data.view(torch.uint8).fill_(mark)
        loader = getattr(parameter, "weight_loader", default_weight_loader)
        if hasattr(parameter, "weight_loader"):
            del parameter.weight_loader
        parameter.weight_loader = _recording(loader, taken)  # type: ignore[attr-defined]
    keys: dict[int, str] = {}
    alive: list[Tensor] = []

    def given() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in stored(checkpoint):
            keys[id(tensor)] = name
            alive.append(tensor)  # or another tensor would get its id
            yield name, tensor

    model.load_weights(given())
    marked = {name: _marked(parameter, mark) for name, parameter in model.named_parameters()}
    return {keys[known] for known in taken if known in keys}, marked


def _recording(loader: Any, taken: dict[int, Tensor]) -> Any:
    def load(parameter: Any, tensor: Tensor, *args: Any, **more: Any) -> Any:
        taken[id(tensor)] = tensor
        return loader(parameter, tensor, *args, **more)

    return load


def _marked(parameter: nn.Parameter, mark: int) -> Tensor:
    """Which elements are nothing but the mark."""
    data = parameter.data.contiguous()
    return (data.view(torch.uint8).view(data.numel(), data.element_size()) == mark).all(1)
