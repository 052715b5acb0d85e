"""Products of 16-bit matrices by way of float32, on processors that have no instructions for 16 bits.

There PyTorch's bfloat16 products run at a tenth of the speed of float32 ones: 128 rows with an 8192 x 2048 weight on
two cores held to AVX2 take 169 ms, and 24 ms with the weight copied to float32 first; with AVX-512 but no bfloat16
instructions, 73 and 22 ms. The weight is copied part by part into a buffer that the caches hold and that is used
again. A product summed in float32 and rounded once is at least as exact as the kernel's own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

from .function_mode import SHORT, Linears, isa_limit, onednn_on_x86
from .workspace import buffers

FEWEST = 4  # rows; for fewer, reading the weight once costs more than the products
_PART = 1 << 20  # numbers of a weight that are copied at a time
_WEIGHT_FIRST = 256  # rows; up to so many, the part of the weight as the left matrix is a tenth to a half faster


def gains(dtype: torch.dtype, device: str, rows: int) -> bool:
    """Whether products of `rows` rows in `dtype` gain from `widened`."""
    return (
        rows >= FEWEST
        and device == "cpu"
        and dtype in SHORT
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not has_instructions(dtype)
    )


@cache
def has_instructions(dtype: torch.dtype) -> bool:
    """Whether this processor multiplies in a 16-bit dtype. True where it is not known: nothing is changed there.

    ONEDNN_MAX_CPU_ISA, which limits what oneDNN uses, counts as the processor.
    """
    kind = "bf16" if dtype == torch.bfloat16 else "fp16"
    supported = getattr(torch.ops.mkldnn, f"_is_mkldnn_{kind}_supported", None)
    if supported is None or not onednn_on_x86():
        return True
    # oneDNN takes bfloat16 on every AVX-512, and multiplies in float32 after all where there is no instruction.
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", None) if kind == "bf16" else None
    return bool(supported()) and (native is None or (bool(native()) and _isa_allows_bfloat16()))


def _isa_allows_bfloat16() -> bool:
    """Of the names that oneDNN knows those with AVX-512 and without bfloat16 are two."""
    return isa_limit() not in ("AVX512_CORE", "AVX512_CORE_VNNI")


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias in float32, rounded to the dtype of x.

    x: [rows, in_features]. weight: [out_features, in_features]. bias: [out_features]. out: [rows, out_features].
    """

    def copied(start: int, place: Tensor) -> None:
        place.copy_(weight[start : start + len(place)])

    return by_parts(x, len(weight), copied, bias, out)


def by_parts(
    x: Tensor,
    features: int,
    wide_part: Callable[[int, Tensor], None],
    bias: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """As `product`, of a weight of which only some rows at a time are there.

    wide_part: called with a number of a row and a place [some rows, in_features] for these rows in float32.
    """
    rows, width = x.shape
    if out is None:
        out = x.new_empty(rows, features)
    wide = buffers.take("widened rows", x, rows, width, dtype=torch.float32).copy_(x)
    step = max(1, _PART // width)
    for start in range(0, features, step):
        some = slice(start, min(start + step, features))
        part = buffers.take("widened weight", x, some.stop - start, width, dtype=torch.float32)
        wide_part(start, part)
        if rows <= _WEIGHT_FIRST:
            turned = buffers.take("widened product", x, len(part), rows, dtype=torch.float32)
            result = torch.mm(part, wide.T, out=turned).T
        else:
            result = buffers.take("widened product", x, rows, len(part), dtype=torch.float32)
            torch.mm(wide, part.T, out=result)
        if bias is not None:
            result.add_(bias[some])
        out[:, some] = result
    return out


def widened() -> Linears:
    """Within it, F.linear goes through `product`."""
    return Linears(product, lambda rows: rows >= FEWEST)
