"""Make room for packed zero points while a model is loaded.

Symptom:  RuntimeError about sizes that do not match when transformers loads a file with zero points (w4a16 or w8a16,
          asymmetric), of any model.
Cause:    on the meta device the weight is packed and its zero points are not: they keep their shape and int8.
Upstream: none known.
Remove:   when compressing on the meta device packs zero points.
"""

from __future__ import annotations

from typing import Any

from zamba_compat._engine.registry import Adapter, Patch


def compress(original: Any) -> Any:
    def compress(cls: Any, state_dict: Any, scheme: Any) -> Any:
        found = original(cls, state_dict, scheme)
        zero, weights = found.get("weight_zero_point"), scheme.weights
        if zero is None or zero.device.type != "meta" or weights.strategy not in ("group", "channel"):
            return found
        rows = -(-zero.shape[0] * weights.num_bits // 32)
        return {**found, "weight_zero_point": found["weight_packed"].new_empty((rows, *zero.shape[1:]))}

    return compress


ADAPTER = Adapter(
    name="packed-zero-points",
    library="compressed-tensors",
    since="0.20",
    group="loading",
    patches=(
        Patch(
            target="compressed_tensors.compressors.pack_quantized.base:PackedQuantizationCompressor.compress",
            replace=compress,
            signature=("cls", "state_dict", "scheme"),
        ),
    ),
    upstream="none known",
)
