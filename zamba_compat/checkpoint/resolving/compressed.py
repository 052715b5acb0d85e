"""The formats of compressed-tensors, which vLLM and transformers read, made of one linear weight at a time.

| method | preset | stored of x.weight |
|---|---|---|
| w4a16, w8a16 | W4A16, W8A16 | x.weight_packed (int32), x.weight_scale, x.weight_shape, maybe x.weight_zero_point |
| fp8 | FP8_DYNAMIC | x.weight (float8_e4m3fn), x.weight_scale, one per row |

The library itself defines the schemes, computes scales, rounds and packs; its numbers are taken as they come.
Source: compressed_tensors.quantization (QuantizationConfig, preset_name_to_scheme, calculate_qparams) and
compressed_tensors.compressors (pack_to_int32, BaseCompressor).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zamba_compat.errors import CheckpointError, UnsupportedReleaseError
from zamba_compat.layout.sharing import SharingMap

from .quantization import CHUNK, refuse_nonfinite

if TYPE_CHECKING:
    import torch
    from torch import Tensor

METHODS = ("w4a16", "w8a16", "fp8")
GROUP_SIZE = 128  # columns that share a scale, unless asked otherwise
RELEASES = ">=0.20,<0.21"
_PRESETS = {"w4a16": "W4A16", "w8a16": "W8A16", "fp8": "FP8_DYNAMIC"}
_DTYPES = ("F16", "BF16", "F32")
_REMEDY = f'Install it with pip install "zamba-compat[serve]" (compressed-tensors{RELEASES}).'
# vLLM calls a shared block's modules by another name than any checkpoint: model.qkv_proj, model.feed_forward.down_proj.
_SHARED_IN_VLLM = r"re:model\.(qkv_proj|o_proj|linear_[qkv]_adapter|feed_forward)"


@dataclass(frozen=True)
class Compressed:
    """How to quantize.

    Attributes:
        name: one of `METHODS`.
        group_size: consecutive columns of a row that share a scale; -1 for whole rows, which is all that fp8 knows.
        symmetric: no zero points.
        ignore: modules to leave as they are, by a part of their names ("in_proj"), their whole name, or a pattern after
            "re:", as in compressed-tensors.
        skip_shared: leave the shared blocks as they are.
        act_order: round columns in the order of their weight in the calibration text; says so in config.json.
    """

    name: str
    group_size: int = GROUP_SIZE
    symmetric: bool = True
    ignore: tuple[str, ...] = ()
    skip_shared: bool = False
    act_order: bool = False

    def __post_init__(self) -> None:
        if self.group_size != -1 and self.group_size < 1:
            raise CheckpointError(f"{self.group_size} is no size of groups.", remedy="Use 128, 64, 32, or -1 for rows.")
        if self.name == "fp8" and not self.symmetric:
            raise CheckpointError("fp8 has no zero points.", remedy="Leave --asymmetric out, or use w8a16.")
        for pattern in self.ignore:
            try:
                re.compile(pattern.removeprefix("re:"))
            except re.error as error:
                raise CheckpointError(
                    f"{pattern!r} is no pattern: {error}.", remedy='Write a name, or a regular expression after "re:".'
                ) from error

    @property
    def sentence(self) -> str:
        """For the model card."""
        kind = "float8 (e4m3), a scale per row" if self.name == "fp8" else f"{self.bits}-bit integers"
        per = "row" if self.group_size == -1 else f"{self.group_size} columns"
        scales = "" if self.name == "fp8" else f", a scale per {per}"
        zeros = "" if self.symmetric else ", with zero points"
        kept = ", the shared blocks left as they are" if self.skip_shared else ""
        return f"Linear weights of the layers quantized to {kind}{scales}{zeros} in compressed-tensors' format{kept}."

    def require(self) -> dict[str, str]:
        """What does it, for the manifest. Raises UnsupportedReleaseError where it is not installed."""
        return {"compressed-tensors": require_compressed_tensors()}

    def scheme(self) -> Any:
        """The library's QuantizationScheme."""
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, preset_name_to_scheme

        scheme = preset_name_to_scheme(_PRESETS[self.name], targets=["Linear"])
        if self.name == "fp8":
            return scheme
        preset, group = scheme.weights, None if self.group_size == -1 else self.group_size
        weights = QuantizationArgs(
            num_bits=preset.num_bits,
            type=preset.type,
            symmetric=self.symmetric,
            strategy="channel" if group is None else "group",
            group_size=group,
            actorder="weight" if self.act_order else None,
        )
        return QuantizationScheme(targets=["Linear"], weights=weights)

    def takes(self, name: str, dtype: str, shape: tuple[int, ...], sharing: SharingMap) -> bool:
        """Whether a tensor of the model is quantized: the linear weights of the layers are.

        Raises:
            CheckpointError: a dtype, or a number of columns that groups do not divide.
        """
        linear = ".layers." in f".{name}" and name.endswith(".weight") and len(shape) == 2
        if not linear or not dtype.startswith(("F", "BF")):
            return False
        if any(_matches(alias, self.patterns(sharing)) for alias in sharing.aliases(name.removesuffix(".weight"))):
            return False
        if dtype not in _DTYPES:
            raise CheckpointError(
                f"It is stored as {dtype}, which is not quantized.",
                where=name,
                remedy="Say with --dtype what to round it to first.",
            )
        if self.name != "fp8" and self.group_size != -1 and shape[1] % self.group_size:
            raise CheckpointError(
                f"Groups of {self.group_size} do not divide its {shape[1]} columns.",
                where=name,
                remedy="Choose a --group-size that does (-1 for whole rows), or leave such weights out by --ignore.",
            )
        return True

    def patterns(self, sharing: SharingMap) -> list[str]:
        """The ignore list of config.json, in the library's words; a shared module stands there under all its names."""
        found = ["lm_head"]
        for word in self.ignore:
            if word.startswith("re:"):
                found.append(word)
            elif "." in word:
                found += sharing.aliases(word)
            else:
                found.append(_kind(word))
        if {"q_proj", "k_proj", "v_proj"} <= {*self.ignore}:
            found.append(_kind("qkv_proj"))  # what vLLM makes of them
        if self.skip_shared:
            found += [rf"re:.*\.{sharing.stem}\.", _SHARED_IN_VLLM]
        return list(dict.fromkeys(found))

    def words(self, sharing: SharingMap, heads: Iterable[str] = ()) -> dict[str, Any]:
        """config.json's quantization_config, made by the library.

        Args:
            sharing: the sharing map of the model that is written.
            heads: modules on top of the layers that are stored, beside lm_head.
        """
        import compressed_tensors
        from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus

        config = QuantizationConfig(
            config_groups={"group_0": self.scheme()},
            format=self._format,
            ignore=list(dict.fromkeys([*self.patterns(sharing), *heads])),
            quantization_status=QuantizationStatus.COMPRESSED,
        )
        return {**config.model_dump(mode="json"), "version": compressed_tensors.__version__}

    def announce(self, dtype: str, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Dtype and shape of what `quantize` makes of a weight, by the end of each tensor's name."""
        rows, columns = shape
        if self.name == "fp8":
            return {"weight": ("F8_E4M3", shape), "weight_scale": (dtype, (rows, 1))}
        bits, groups = self.bits, 1 if self.group_size == -1 else columns // self.group_size
        found: dict[str, tuple[str, tuple[int, ...]]] = {
            "weight_packed": ("I32", (rows, -(-columns * bits // 32))),
            "weight_scale": (dtype, (rows, groups)),
            "weight_shape": ("I64", (2,)),
        }
        if not self.symmetric:
            found["weight_zero_point"] = ("I32", (-(-rows * bits // 32), groups))
        return found

    def quantize(self, weight: Tensor, where: str) -> dict[str, Tensor]:
        """What is stored of a weight, rounded to nearest: the end of each tensor's name -> the tensor.

        Args:
            weight: (rows, columns), float16, bfloat16 or float32.
            where: what to call it in errors.

        Raises:
            CheckpointError: NaN or infinity.
        """
        scale, zero = self.scales(weight, where)
        return self.packed(weight, scale, zero)

    def scales(self, weight: Tensor, where: str) -> tuple[Tensor, Tensor]:
        """Scales and zero points, (rows, groups): the scales in the weight's dtype, zero points as int8.

        Raises:
            CheckpointError: NaN or infinity.
        """
        import torch

        rows, columns = weight.shape
        group = columns if self.name == "fp8" or self.group_size == -1 else self.group_size
        scale = torch.empty(rows, columns // group, dtype=weight.dtype)
        zero = torch.zeros(scale.shape, dtype=torch.int8)
        for here in _pieces(weight):
            scale[here], zero[here] = self.scales_of(weight[here].reshape(-1, columns // group, group), weight.dtype)
        if not scale.isfinite().all():
            raise refuse_nonfinite([where])
        return scale, zero

    def scales_of(self, groups: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """As `scales`, of groups that are laid out (..., columns of a group); the scales in `dtype`."""
        import torch
        from compressed_tensors.quantization.utils import calculate_qparams

        low, high = groups.aminmax(dim=-1)
        low, high = low.float(), high.float()
        # A group of zeros has no scale, and the library divides by it to find the zero point.
        high = high.where((low != 0) | (high != 0), torch.finfo(torch.float32).eps)
        scale, zero = calculate_qparams(low, high, self.scheme().weights)
        scale = scale.to(dtype)
        scale = scale.where(scale != 0, torch.finfo(dtype).smallest_normal)
        return scale, zero if not self.symmetric else torch.zeros(scale.shape, dtype=torch.int8)

    def nearest(self, values: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """The nearest level of each value, float32; one scale and zero point per value."""
        low, high = -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        step, at = scale.float(), zero.float()
        return ((values / step + at).round_().clamp_(low, high) - at) * step

    def packed(self, weight: Tensor, scale: Tensor, zero: Tensor) -> dict[str, Tensor]:
        """What is stored of a weight whose scales are known; each element goes to the nearest level."""
        import torch
        from compressed_tensors.compressors import BaseCompressor

        scheme, compressor = self.scheme(), BaseCompressor.get_value_from_registry(self._format)
        kept: dict[str, list[Tensor]] = {}
        for here in _pieces(weight):
            known = {"weight": weight[here].float(), "weight_scale": scale[here].float()}
            parts = compressor.compress({**known, "weight_zero_point": zero[here]}, scheme)
            for end in ("weight_packed", "weight", "weight_zero_point"):
                if end in parts:
                    kept.setdefault(end, []).append(parts[end])
        found = {end: torch.cat(parts) for end, parts in kept.items()}
        found["weight_scale"] = scale
        if self.name != "fp8":
            found["weight_shape"] = torch.tensor(weight.shape, dtype=torch.int64)
        return found

    def dequantized(self, parts: dict[str, Tensor]) -> Tensor:
        """The values of what `packed` made, in the dtype of the scales, as the library computes them."""
        from compressed_tensors.compressors import BaseCompressor

        compressor = BaseCompressor.get_value_from_registry(self._format)
        values: Tensor = compressor.decompress(parts, self.scheme())["weight"]
        return values

    @property
    def bits(self) -> int:
        """Of an integer."""
        return int(self.name[1])

    @property
    def _format(self) -> str:
        return "float-quantized" if self.name == "fp8" else "pack-quantized"


def require_compressed_tensors() -> str:
    """The release of compressed-tensors that is installed. Raises UnsupportedReleaseError: none, or another one."""
    from importlib.metadata import PackageNotFoundError, version

    from packaging.specifiers import SpecifierSet

    try:
        found = version("compressed-tensors")
    except PackageNotFoundError as error:
        raise UnsupportedReleaseError("compressed-tensors is not installed.", remedy=_REMEDY) from error
    if not SpecifierSet(RELEASES).contains(found, prereleases=True):
        raise UnsupportedReleaseError(f"compressed-tensors {found} is not one this was made for.", remedy=_REMEDY)
    return found


def _kind(word: str) -> str:
    """The pattern of every module that is called so, and of what is in it."""
    return rf"re:(.*\.)?{re.escape(word)}(\..*)?$"


def _matches(module: str, patterns: Iterable[str]) -> bool:
    return any(
        re.match(pattern[3:], module) is not None if pattern.startswith("re:") else pattern == module
        for pattern in patterns
    )


def _pieces(weight: Tensor) -> Iterable[slice]:
    """Rows in runs of at most about CHUNK weights, a multiple of 32, so that what is packed over rows stays whole."""
    step = max(32, CHUNK // weight.shape[1] // 32 * 32)
    return (slice(start, start + step) for start in range(0, weight.shape[0], step))
