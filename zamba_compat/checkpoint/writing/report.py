"""What a conversion is asked for, and what it did."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zamba_compat.checkpoint.dtypes import DTYPES
from zamba_compat.checkpoint.layouts.contents import WRITTEN
from zamba_compat.checkpoint.resolving import compressed, quantization
from zamba_compat.checkpoint.resolving.resolve import CHOICES, Residual
from zamba_compat.errors import CheckpointError
from zamba_compat.layout.plan import Divergence

from .writer import parse_size

FORMATS = ("safetensors", "torch")
METHODS = (*quantization.METHODS, *compressed.METHODS)


@dataclass(frozen=True)
class Options:
    """How to convert.

    Attributes:
        layout: of the output, see `layouts.contents.WRITTEN`.
        resolve: what becomes of copies that differ, see `resolving.resolve`. With layout "untied", "error" keeps them.
        adapter_rank: of the adapters after "absorb"; None keeps it.
        dtype: "float32", "bfloat16" or "float16" for every floating-point tensor; None keeps each tensor's.
        max_shard_size: bytes of tensors per file, such as "5GB" (of 10**9 bytes).
        dry_run: check, compare and measure, and write nothing.
        overwrite: replace a destination that is not empty.
        allow_unknown: copy tensors that are no part of the model.
        allow_pickle: read .bin and .pt files, with torch.load(weights_only=True).
        calibrate: a text file on which to measure how far the output is from the untied model; needs transformers.
        quantize: "nf4", "fp4" or "int8" for the linear weights of the layers, by bitsandbytes, or "w4a16", "w8a16" or
            "fp8", in compressed-tensors' format; layouts hub and untied.
        double_quant: quantize the absmaxes too; nf4 and fp4 only.
        compute_dtype: that config.json names for products with 4-bit weights; None is the model's dtype.
        keep_shared_16bit: leave the shared blocks unquantized.
        group_size: columns that share a scale, -1 for whole rows; w4a16 and w8a16 only, None is 128.
        asymmetric: a zero point beside each scale; w4a16 and w8a16 only.
        ignore: modules to leave unquantized, see `resolving.compressed.Compressed`.
        gptq: a text file on which w4a16 and w8a16 are rounded, see `resolving.gptq`; needs transformers.
        act_order: with gptq, round the columns that weigh most first.
        keep_unused_adapters: keep the adapters that Zyphra's layouts give a block for positions that run another one.
            In the hub layout they stand beside the model, under layers whose block does not own them. Otherwise they
            are dropped, and written as zeros where a layout asks for them. Layouts hub and Zyphra's two.
        format: "safetensors", or "torch" for one pickled pytorch_model.bin, which is what the code of Zyphra's
            standalone repository loads and saves; None is "torch" for layout "zyphra-native".
    """

    layout: str = "hub"
    resolve: str = "error"
    adapter_rank: int | None = None
    dtype: str | None = None
    max_shard_size: str = "5GB"
    dry_run: bool = False
    overwrite: bool = False
    allow_unknown: bool = False
    allow_pickle: bool = False
    calibrate: str | None = None
    quantize: str | None = None
    double_quant: bool = False
    compute_dtype: str | None = None
    keep_shared_16bit: bool = False
    group_size: int | None = None
    asymmetric: bool = False
    ignore: Sequence[str] = ()
    gptq: str | None = None
    act_order: bool = False
    keep_unused_adapters: bool = False
    format: str | None = None

    def __post_init__(self) -> None:
        for value, known, name in (
            (self.layout, WRITTEN, "layout"),
            (self.format or "torch", FORMATS, "format of weights"),
            (self.resolve, CHOICES, "way to resolve copies"),
            (self.dtype or "float32", tuple(DTYPES), "dtype"),
            (self.compute_dtype or "float32", tuple(DTYPES), "dtype"),
            (self.quantize or METHODS[0], METHODS, "way to quantize"),
        ):
            if value not in known:
                raise CheckpointError(f"{value!r} is no {name}.", remedy=f"Use one of {', '.join(known)}.")
        try:
            parse_size(self.max_shard_size)
        except ValueError as error:
            raise CheckpointError(
                f"{self.max_shard_size!r} is no size.", remedy="Write a number and KB, MB, GB or TB, such as 5GB."
            ) from error
        if self.keep_unused_adapters and self.layout in ("expanded", "untied"):
            raise CheckpointError(
                f"The {self.layout} layout has no place for adapters that no position uses.",
                remedy="Use --layout hub, zyphra-fork or zyphra-native, or leave --keep-unused-adapters out.",
            )
        self._check_quantization()

    @property
    def is_pickled(self) -> bool:
        """Whether the weights are written as pytorch_model.bin."""
        return self.format == "torch" or (self.format is None and self.layout == "zyphra-native")

    def _check_quantization(self) -> None:
        bitsandbytes = self.double_quant or self.compute_dtype
        packed = self.group_size is not None or self.asymmetric or self.gptq or self.act_order
        if self.quantize is None and (bitsandbytes or packed or self.ignore or self.keep_shared_16bit):
            raise CheckpointError(
                "How to quantize is said, but not to what.", remedy=f"Add --quantize {', '.join(METHODS)}."
            )
        if self.quantize is not None and self.quantize not in ("nf4", "fp4") and bitsandbytes:
            raise CheckpointError(
                "Double quantization and a compute dtype are for nf4 and fp4.", remedy="Leave them out, or choose nf4."
            )
        if self.quantize is not None and self.quantize not in ("w4a16", "w8a16") and packed:
            raise CheckpointError(
                "Groups, zero points and rounding by a text are for w4a16 and w8a16.",
                remedy="Leave them out, or choose w4a16.",
            )
        if self.ignore and self.quantize not in compressed.METHODS:
            raise CheckpointError(
                "bitsandbytes' methods take no list of modules to ignore.",
                remedy=f"Leave it out, or choose {', '.join(compressed.METHODS)}.",
            )
        if self.act_order and self.gptq is None:
            raise CheckpointError("Without a text there is no order of columns.", remedy="Add --gptq TEXT.")
        if self.quantize is not None and self.layout not in ("hub", "untied"):
            raise CheckpointError(
                f"A quantized checkpoint holds each shared block once; {self.layout} is no layout for it.",
                remedy="Use --layout hub.",
            )
        if self.quantize is not None and self.is_pickled:
            raise CheckpointError(
                "Quantized checkpoints are read from safetensors.", remedy="Leave --format out, or use safetensors."
            )


# What takes everything about quantizing out of options.
UNQUANTIZED: dict[str, Any] = {
    "quantize": None,
    "double_quant": False,
    "compute_dtype": None,
    "keep_shared_16bit": False,
    "group_size": None,
    "asymmetric": False,
    "ignore": (),
    "gptq": None,
    "act_order": False,
}


@dataclass(frozen=True)
class Report:
    """What a conversion did, or would do.

    Attributes:
        source, destination: as given.
        source_layout: the layout that was recognised; "divergent" is expanded or partial with copies that differ.
        options: what was asked for.
        written: False after a dry run.
        tensors_stored, tensors: in the source, in the output.
        bytes_stored, bytes: of tensors in the source, in the output.
        divergences: shared tensors whose copies differ.
        residuals: what tying them again leaves.
        config: entries of config.json that changed, name -> (before, after); None for an absent one.
        unknown: tensors that are no part of the model.
        shards: files with tensors -> bytes of tensors in them.
        peak_memory: estimate of the anonymous memory needed beyond the libraries', bytes; mapped files are not in it.
        warnings: what a person should hear.
        kl_divergence: mean per token, in nats, of the converted from the untied model; None if it was not measured.
    """

    source: str
    destination: str
    source_layout: str
    options: Options
    written: bool
    tensors_stored: int
    tensors: int
    bytes_stored: int
    bytes: int
    divergences: tuple[Divergence, ...]
    residuals: tuple[Residual, ...]
    config: Mapping[str, tuple[Any, Any]]
    unknown: tuple[str, ...]
    shards: Mapping[str, int]
    peak_memory: int
    warnings: tuple[str, ...]
    kl_divergence: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)
