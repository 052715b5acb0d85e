"""The dtypes of a safetensors file that can appear in a Zamba or Zamba2 checkpoint, and the bytes of tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Sliced = TypeVar("Sliced", memoryview, "Tensor")

# In the order in which safetensors lays tensors out in a file (the last one first), which keeps them aligned.
_TORCH_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}
_WORDS = {name: word for word, name in _TORCH_NAMES.items()}
RANK = {word: rank for rank, word in enumerate(_TORCH_NAMES)}
# Bytes per element.
SIZES = {
    word: 1 if word in ("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3") else int(word.lstrip("BFIU")) // 8
    for word in _TORCH_NAMES
}
# The bits of positive infinity (of the first NaN where there is no infinity): larger ones are no finite numbers.
INFINITY_BITS = {
    "F8_E5M2": 0x7C,
    "F8_E4M3": 0x7F,
    "F16": 0x7C00,
    "BF16": 0x7F80,
    "F32": 0x7F800000,
    "F64": 0x7FF0000000000000,
}
# torch's names, as config.json and the command line use them.
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
BUFFER = 2**20  # bytes read at once; still in the processor's cache when they are hashed


def to_torch(word: str) -> torch.dtype:
    """The torch dtype of a safetensors word ("BF16"). KeyError for any other word."""
    import torch

    dtype = getattr(torch, _TORCH_NAMES[word])
    assert isinstance(dtype, torch.dtype)
    return dtype


def from_torch(dtype: torch.dtype) -> str | None:
    """The safetensors word of a torch dtype, or None when a checkpoint cannot hold it."""
    return _WORDS.get(str(dtype).removeprefix("torch."))


def bytes_of(tensor: Tensor) -> memoryview:
    """The tensor's elements in order, as bytes; a copy only where they do not lie so."""
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    data: Any = flat.view(torch.uint8).numpy()
    return memoryview(data)


def in_chunks(data: Sliced, size: int = BUFFER) -> Iterator[Sliced]:
    """Bytes, or a tensor of one dimension, in pieces of `size`; the last one may be shorter.

    As a number of bytes BUFFER is a multiple of every element's size.
    """
    for at in range(0, len(data), size):
        yield data[at : at + size]


def all_finite(chunk: memoryview, dtype: str) -> bool:
    """Whether none of the elements (little-endian) is NaN or infinite; True for integers and booleans.

    Read as integers of their size, the elements that are not finite are the largest positive and the largest unsigned
    ones, so two maxima decide it without a temporary array.
    """
    limit = INFINITY_BITS.get(dtype)
    if limit is None:
        return True
    import numpy as np

    size = SIZES[dtype]
    elements = np.frombuffer(chunk, f"<i{size}")
    sign = 1 << (8 * size - 1)
    return bool(elements.max() < limit and elements.view(f"<u{size}").max() < sign + limit)
