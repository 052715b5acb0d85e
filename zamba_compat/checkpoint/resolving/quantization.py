"""bitsandbytes' stored formats, made of one linear weight at a time without a module."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from zamba_compat.checkpoint.dtypes import all_finite, from_torch, to_torch
from zamba_compat.errors import CheckpointError, UnsupportedReleaseError
from zamba_compat.layout.sharing import SharingMap

if TYPE_CHECKING:
    from torch import Tensor

METHODS = ("nf4", "fp4", "int8")
CHUNK = 2**20  # weights given to bitsandbytes at once, a multiple of BLOCK: its temporaries stay small
WORKSPACE = 160 * CHUNK  # bytes; the releases that look the nearest of 16 levels up by comparing them all take most
BLOCK = 64  # weights that share an absmax
NESTED_BLOCK = 256  # absmaxes that share one of their own, with double quantization
_DTYPES = ("F16", "BF16", "F32")  # what bitsandbytes takes


@dataclass(frozen=True)
class Method:
    """How to quantize.

    Attributes:
        name: one of `METHODS`.
        double: quantize the absmaxes too; 4 bits only.
        compute_dtype: of the matrix products with 4-bit weights, for config.json: "bfloat16" and so on.
        skip_shared: leave the shared blocks as they are.
    """

    name: str
    double: bool = False
    compute_dtype: str = "float32"
    skip_shared: bool = False

    @property
    def sentence(self) -> str:
        """For the model card."""
        kind = "8-bit integers" if self.name == "int8" else self.name.upper()
        more = " with double quantization" if self.double else ""
        kept = ", the shared blocks left as they are" if self.skip_shared else ""
        return f"Linear weights of the layers quantized to {kind}{more} by bitsandbytes{kept}."

    def require(self) -> dict[str, str]:
        """What does it and where, for the manifest. Raises UnsupportedReleaseError as `require_bitsandbytes`."""
        return {"bitsandbytes": require_bitsandbytes(self), "device": device()}

    def announce(self, dtype: str, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """See the function `announce`."""
        return announce(dtype, shape, self)

    def quantize(self, weight: Tensor, where: str) -> dict[str, Tensor]:
        """See the function `quantize`."""
        return quantize(weight, self, where)

    def takes(self, name: str, dtype: str, shape: tuple[int, ...], sharing: SharingMap) -> bool:
        """Whether a tensor of the model is quantized: the linear weights of the layers are."""
        linear = ".layers." in f".{name}" and name.endswith(".weight") and len(shape) == 2
        if linear and dtype not in _DTYPES and dtype.startswith("F"):
            raise CheckpointError(
                f"It is stored as {dtype}, which bitsandbytes does not quantize.",
                where=name,
                remedy="Say with --dtype what to round it to first.",
            )
        return linear and dtype in _DTYPES and not (self.skip_shared and sharing.parse(name) is not None)

    def words(self, sharing: SharingMap, heads: Iterable[str] = ()) -> dict[str, Any]:
        """config.json's quantization_config, as every release in range writes and reads it.

        Args:
            sharing: the sharing map of the model that is written.
            heads: modules on top of the layers that are stored, beside lm_head.
        """
        skipped = {"lm_head", "model.embed_tokens", *heads}
        if self.skip_shared:
            skipped |= {f"model.layers.{layer}.{sharing.stem}" for layer in sharing.hybrid_layers}
        eight = self.name == "int8"
        return {
            "_load_in_4bit": not eight,
            "_load_in_8bit": eight,
            "bnb_4bit_compute_dtype": self.compute_dtype,
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_quant_type": "fp4" if eight else self.name,
            "bnb_4bit_use_double_quant": self.double,
            "llm_int8_enable_fp32_cpu_offload": False,
            "llm_int8_has_fp16_weight": False,
            "llm_int8_skip_modules": sorted(skipped),
            "llm_int8_threshold": 6.0,
            "load_in_4bit": not eight,
            "load_in_8bit": eight,
            "quant_method": "bitsandbytes",
        }


def require_bitsandbytes(method: Method) -> str:
    """The release of bitsandbytes that is installed.

    Raises:
        UnsupportedReleaseError: none, or one that cannot do this here.
    """
    from importlib.metadata import PackageNotFoundError, version
    from types import SimpleNamespace

    from packaging.version import Version

    from zamba_compat.layout.bitsandbytes_limits import refuse_fp4, refuse_on_cpu

    try:
        found = version("bitsandbytes")
    except PackageNotFoundError as error:
        raise UnsupportedReleaseError(
            "bitsandbytes is not installed.", remedy="Install bitsandbytes>=0.48,<0.51; it is what quantizes."
        ) from error
    if Version(found) < Version("0.46.1") and device() == "cpu":
        refuse_on_cpu()
    refuse_fp4(SimpleNamespace(load_in_4bit=method.name != "int8", bnb_4bit_quant_type=method.name))
    return found


def device() -> str:
    """Where weights are quantized: on the GPU if there is one, as `from_pretrained` does."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def quantize(weight: Tensor, method: Method, where: str) -> dict[str, Tensor]:
    """What bitsandbytes stores of a weight: the end of each tensor's name -> the tensor, on the CPU.

    Bit for bit what its modules make of the whole weight: both formats treat blocks or rows one by one, so that the
    weight may be given to it in pieces. In 4 bits "weight" holds two weights per byte, (n / 2, 1), with "weight.absmax"
    and so on beside it; in 8 bits it has the shape it had, with "SCB", the absmax of each row, beside it.

    Args:
        weight: (rows, columns), float16, bfloat16 or float32.
        method: how.
        where: what to call it in errors.

    Raises:
        CheckpointError: NaN, infinity, or (8 bits) a number that float16 does not hold.
    """
    return _to_8_bits(weight, where) if method.name == "int8" else _to_4_bits(weight, method, where)


def announce(dtype: str, shape: tuple[int, ...], method: Method) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape of what `quantize` makes of a weight, without the weight.

    Exact but for the length of the 4-bit quant state with double quantization: it holds a number as text, so it may be
    some bytes longer or shorter.
    """
    rows, columns = shape
    if method.name == "int8":
        return {"weight": ("I8", shape), "SCB": ("F32", (rows,)), "weight_format": ("U8", ())}
    blocks = math.ceil(rows * columns / BLOCK)
    sizes = {
        "weight": (math.ceil(rows * columns / 2), 1),
        "weight.absmax": (blocks,),
        "weight.nested_absmax": (math.ceil(blocks / NESTED_BLOCK),),
    }
    found = {}
    for end, (word, known) in _sample(dtype, method).items():
        if ".quant_state." in end:
            known = (known[0] + len(json.dumps(shape)) - len(json.dumps((1, BLOCK))),)
        found[end] = (word, sizes.get(end, known))
    return found


@cache
def _sample(dtype: str, method: Method) -> dict[str, tuple[str, tuple[int, ...]]]:
    import torch

    parts = quantize(torch.full((1, BLOCK), 0.1, dtype=to_torch(dtype)), method, "")
    return {end: (from_torch(part.dtype) or "", tuple(part.shape)) for end, part in parts.items()}


def _to_4_bits(weight: Tensor, method: Method, where: str) -> dict[str, Tensor]:
    import bitsandbytes.functional as bnb
    import torch

    flat = weight.reshape(-1)
    packed = torch.empty(((len(flat) + 1) // 2, 1), dtype=torch.uint8)
    absmax, code = torch.empty(math.ceil(len(flat) / BLOCK), device=device()), None
    for start in range(0, len(flat), CHUNK):
        piece = _finite(flat[start : start + CHUNK], where)
        part, state = bnb.quantize_4bit(piece.to(device()), blocksize=BLOCK, quant_type=method.name)
        packed[start // 2 : start // 2 + len(part)] = part
        absmax[start // BLOCK : start // BLOCK + len(state.absmax)] = state.absmax
        code = state.code
    known = {"shape": weight.shape, "dtype": weight.dtype, "blocksize": BLOCK, "code": code, "quant_type": method.name}
    if method.double:
        offset = absmax.mean()
        absmax, nested = bnb.quantize_blockwise(absmax - offset, blocksize=NESTED_BLOCK)
        known |= {"offset": offset, "state2": nested}
    state = bnb.QuantState(absmax=absmax, **known)
    parts = state.as_dict(packed=True)
    return {"weight": packed, **{f"weight.{name}": part.cpu() for name, part in parts.items()}}


def _to_8_bits(weight: Tensor, where: str) -> dict[str, Tensor]:
    import bitsandbytes.functional as bnb
    import torch

    rows = max(1, CHUNK // weight.shape[1])
    packed = torch.empty(weight.shape, dtype=torch.int8)
    maxima = torch.empty(weight.shape[0], dtype=torch.float32)
    for start in range(0, weight.shape[0], rows):
        piece = _finite(weight[start : start + rows], where).half()
        if not _is_finite(piece):
            raise CheckpointError(
                "It holds numbers beyond float16, from which bitsandbytes quantizes to 8 bits.",
                where=where,
                remedy="Quantize to 4 bits.",
            )
        part, absmax, _ = bnb.int8_vectorwise_quant(piece.to(device()))
        packed[start : start + rows] = part
        maxima[start : start + rows] = absmax
    return {"weight": packed, "SCB": maxima, "weight_format": torch.tensor(0, dtype=torch.uint8)}


def _finite(piece: Tensor, where: str) -> Tensor:
    if not _is_finite(piece):
        raise refuse_nonfinite([where])
    return piece


def refuse_nonfinite(names: Iterable[str]) -> CheckpointError:
    """The error for tensors that hold NaN or infinity."""
    return CheckpointError(
        "It holds NaN or infinity: no quantized weights come of that.",
        where=", ".join(names),
        remedy="Get or train the checkpoint again; `zamba-compat convert-checkpoint` names every such tensor.",
    )


def _is_finite(piece: Tensor) -> bool:
    import torch

    data: Any = piece.contiguous().reshape(-1).view(torch.uint8).numpy()
    return all_finite(memoryview(data), from_torch(piece.dtype) or "")
