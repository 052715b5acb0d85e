"""Linear layers in 4-bit, and a CPU with AVX512-BF16: the real one if there is one, else a simulated one.

The simulation says that the instructions are there and puts `simulated_gemv` in the place of the kernel. It takes the
weight apart by the definition of the packed layout, in plain PyTorch, and rounds where the kernel rounds. What is not
tested then is the kernel itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from zamba_compat.patches.bitsandbytes import carried_cpu_flag, cpu_packing, state_dtype, storage_cast

import zamba_compat
from zamba_compat._engine.registry import Registry

bitsandbytes = pytest.importorskip("bitsandbytes")

# Packing outermost: what comes after it finds plain weights.
ADAPTERS = (storage_cast.ADAPTER, state_dtype.ADAPTER, carried_cpu_flag.ADAPTER, cpu_packing.ADAPTER)


def simulated_gemv(A: Tensor, B: Tensor, shapeB: list[int], absmax: Tensor, code: Tensor, blocksize: int) -> Tensor:
    rows, columns = shapeB
    assert rows % 32 == 0, "the kernel would end the process"
    assert columns % blocksize == 0 and absmax.numel() * blocksize == rows * columns
    with torch.no_grad():  # the kernel is C++: no history
        blocks = B.reshape(rows // 32, columns // 2, 32)
        nibbles = torch.empty(rows, columns, dtype=torch.long)
        for row in range(32):
            for odd in range(2):
                byte = blocks[:, :, 2 * (row % 16) + odd]
                nibbles[row::32, odd::2] = byte & 0xF if row < 16 else byte >> 4
        scales = absmax.to(torch.bfloat16).float().reshape(columns // blocksize, rows).T
        weight = code.to(torch.bfloat16).float()[nibbles] * scales.repeat_interleave(blocksize, 1)
        flat = A.to(torch.bfloat16).reshape(-1, columns)
        # The kernel is told the distance of the rows alone, and takes each for contiguous.
        flat = torch.as_strided(flat, flat.shape, (flat.stride(0), 1))
        out = (flat.float() @ weight.T).to(torch.bfloat16)
        return out.to(A.dtype).reshape(*A.shape[:-1], rows)


@pytest.fixture(scope="module", autouse=True)
def stock() -> Iterator[None]:
    """bitsandbytes as it comes, whatever the import of zamba_compat has armed."""
    zamba_compat.uninstall()
    yield
    zamba_compat.install()


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A CPU with AVX512-BF16."""
    from bitsandbytes import functional
    from bitsandbytes.nn import modules

    if not hasattr(functional, "has_avx512bf16"):
        pytest.skip("this release packs nothing")
    if functional.has_avx512bf16():
        yield
        return
    for module in (functional, modules):
        monkeypatch.setattr(module, "has_avx512bf16", lambda: True)
    library = torch.library.Library("bitsandbytes", "IMPL")
    library.impl("gemv_4bit", simulated_gemv, "CPU")
    yield
    library._destroy()


@pytest.fixture
def armed() -> Iterator[Registry]:
    registry = Registry(ADAPTERS)
    registry.arm()
    yield registry
    cpu_packing.unpack_all()
    registry.disarm()


@pytest.fixture
def linear() -> Callable[..., Any]:
    """linear(rows, columns, ...): a quantized Linear4bit in eval mode, the scales of its blocks far apart."""

    def linear(
        rows: int, columns: int, *, bias: bool = False, compute_dtype: Any = torch.bfloat16, **kwargs: Any
    ) -> Any:
        made = bitsandbytes.nn.Linear4bit(
            columns, rows, bias=bias, compute_dtype=compute_dtype, **{"quant_type": "nf4", **kwargs}
        )
        made.weight.data = torch.randn(rows, columns) * torch.rand(rows, 1).exp2().mul(torch.rand(1, columns) + 0.1)
        return made.to("cpu").eval()

    return linear


def weights(module: Any) -> Tensor:
    """The dequantized weight, as bitsandbytes computes it from the plain layout.

    A copy is unpacked, so that the module stays as it is.
    """
    weight, state = module.weight, module.weight.quant_state
    with torch.no_grad():
        data = cpu_packing.plain(weight.data, state)
        return bitsandbytes.functional.dequantize_4bit(data, state).clone()  # type: ignore[no-any-return]


def reload(module: Any) -> Any:
    """What a state dict of the module gives when it is read again."""
    saved = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    stats = {name[7:]: tensor for name, tensor in saved.items() if name.startswith("weight.")}
    made = bitsandbytes.nn.Linear4bit(module.in_features, module.out_features, bias=module.bias is not None)
    made.weight = bitsandbytes.nn.Params4bit.from_prequantized(saved["weight"], stats, device="cpu", module=made)
    return made.eval()
