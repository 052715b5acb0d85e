"""Quantizing while loading holds one weight in 16 bits at a time, whatever the checkpoint's size."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from importlib.metadata import version
from typing import Any

import pytest
import torch
from packaging.version import Version

from conformance.helpers import Checkpoint, load
from conformance.mending import builds
from conformance.quantization import bnb_config, is_quantized, linears

pytest.importorskip("bitsandbytes")

pytestmark = [
    *builds(),
    pytest.mark.skipif(Version(version("transformers")) < Version("5"), reason="4.x has no threads that read ahead"),
]


def held_in_16_bits() -> dict[int, int]:
    """Bytes of all storages that bfloat16 tensors of this process lie in, by address."""
    storages: dict[int, int] = {}
    for thing in gc.get_objects():
        if type(thing) not in (torch.Tensor, torch.nn.Parameter) or thing.dtype != torch.bfloat16:
            continue
        if thing.device.type == "cpu":
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return storages


@pytest.fixture
def at_each_quantization(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes held in bfloat16 whenever bitsandbytes is given a weight, once whoever reads ahead has read it all."""
    import bitsandbytes.functional as F

    reading: list[weakref.ref[Future[Any]]] = []
    found: list[int] = []
    submit = ThreadPoolExecutor.submit

    def submitted(self: ThreadPoolExecutor, *args: Any, **kwargs: Any) -> Future[Any]:
        future = submit(self, *args, **kwargs)
        reading.append(weakref.ref(future))
        return future

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def quantize(*args: Any, **kwargs: Any) -> Any:
            wait([future for future in (reference() for reference in reading) if future is not None], timeout=60)
            found.append(sum(held_in_16_bits().values()))
            return original(*args, **kwargs)

        return quantize

    monkeypatch.setattr(ThreadPoolExecutor, "submit", submitted)
    for name in ("quantize_4bit", "int8_vectorwise_quant"):
        monkeypatch.setattr(F, name, counted(getattr(F, name)))
    return found


@pytest.mark.mended_by("quantized-one-by-one")
@pytest.mark.parametrize("method", ["nf4", "int8"])
@pytest.mark.parametrize("pattern", ["1.2B"])
def test_one_weight_at_a_time(
    pattern: str, method: str, checkpoint: Checkpoint, at_each_quantization: list[int]
) -> None:
    directory = checkpoint(pattern, dtype=torch.bfloat16)
    gc.collect()
    before = sum(held_in_16_bits().values())

    model = load(directory, quantization_config=bnb_config(method), torch_dtype=torch.bfloat16)

    quantized = {id(module.weight): module for module in linears(model).values() if is_quantized(module)}
    sizes = [2 * module.in_features * module.out_features for module in quantized.values()]
    kept = sum(held_in_16_bits().values()) - before
    assert len(at_each_quantization) >= len(sizes)
    assert sum(sizes) > 10 * max(sizes)  # or the bound below would bound nothing
    assert max(at_each_quantization) - before <= kept + 2 * max(sizes)
