"""The loops are the same with Python's lock and without."""

from __future__ import annotations

import pytest
import torch

from zamba_compat.merging import blocks

SIZES = [0, 1, blocks.BLOCK, 2 * blocks.BLOCK + 3]


def parents(size: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(size)
    return [torch.randn(size, generator=generator).to(dtype) for _ in range(3)]


@pytest.mark.parametrize("loop", [blocks.weighted, blocks.products, blocks.slerped_rows])
def test_torch_at_hand_compiles_them_and_says_nothing(loop, recwarn: pytest.WarningsRecorder) -> None:
    blocks.without_lock.cache_clear()
    assert isinstance(blocks.without_lock(loop), torch.jit.ScriptFunction)
    assert not recwarn.list


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES)
def test_compiled_and_plain_agree_bit_for_bit(size: int, dtype: torch.dtype) -> None:
    tensors, found = parents(size, dtype), []
    for loop in (blocks.weighted, blocks.without_lock(blocks.weighted)):
        for _ in range(3):  # TorchScript looks at two calls and rewrites itself for the third
            found.append(torch.empty(size, dtype=torch.bfloat16))
            loop(found[-1], tensors, [0.3, 0.8, -0.1], blocks.memory())
    assert all(torch.equal(one, found[0]) for one in found)
    own, compiled = blocks.products, blocks.without_lock(blocks.products)
    assert {compiled(*tensors[:2], blocks.memory()) for _ in range(3)} == {own(*tensors[:2], blocks.memory())}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 5), (2 * blocks.BLOCK // 1000 + 3, 1000), (2, blocks.BLOCK)])
def test_rows_too(shape: tuple[int, int], dtype: torch.dtype) -> None:
    a, b, _ = (tensor.reshape(shape) for tensor in parents(shape[0] * shape[1], dtype))
    a[1] = 0
    found, told = [], set()
    for loop in (blocks.slerped_rows, blocks.without_lock(blocks.slerped_rows)):
        for _ in range(3):
            found.append(torch.empty(a.numel(), dtype=torch.bfloat16))
            told.add(loop(found[-1], a, b, 0.3, blocks.memory()))
    assert all(torch.equal(one, found[0]) for one in found) and told == {(1, 0)}


def test_without_torchscript_python_runs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_: object) -> None:
        raise RuntimeError("torch.jit.script is no more")

    monkeypatch.setattr(torch.jit, "script", gone)
    blocks.without_lock.cache_clear()
    assert blocks.without_lock(blocks.weighted) is blocks.weighted
    blocks.without_lock.cache_clear()
