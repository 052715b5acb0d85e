"""Checkpoints in the formats of compressed-tensors, as llm-compressor writes them: round to nearest, weights alone."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

GROUP = 32  # columns that share a scale in W4A16 and W8A16


def write(source: Path, out: Path, preset: str) -> Path:
    """Quantize every linear of the layers, the shared ones among them, by one of the library's presets."""
    import compressed_tensors
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus, preset_name_to_scheme
    from compressed_tensors.quantization.utils import calculate_qparams

    scheme = preset_name_to_scheme(preset, targets=["Linear"])
    if scheme.weights.group_size:
        scheme.weights.group_size = GROUP
    packed = scheme.weights.type == "int"
    kind = "pack-quantized" if packed else "float-quantized"
    compressor = BaseCompressor.get_value_from_registry(kind)
    tensors: dict[str, Tensor] = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if tensor.ndim != 2 or ".layers." not in name:
            tensors[name] = tensor.float()
            continue
        weight = tensor.float()
        rows = weight.reshape(len(weight), -1, scheme.weights.group_size or weight.shape[1])
        scale, zero = calculate_qparams(rows.amin(-1), rows.amax(-1), scheme.weights)
        parts = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
        stored = compressor.compress(parts, scheme)
        tensors |= {f"{name.removesuffix('weight')}{part}": value.contiguous() for part, value in stored.items()}
    config = QuantizationConfig(
        config_groups={"group_0": scheme},
        format=kind,
        ignore=["lm_head"],
        quantization_status=QuantizationStatus.COMPRESSED,
    )
    words = {**config.model_dump(mode="json"), "version": compressed_tensors.__version__}
    words["quant_method"] = "compressed-tensors"
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    described = json.loads((source / "config.json").read_text(encoding="utf-8"))
    described |= {"quantization_config": words, "torch_dtype": "float32"}
    (out / "config.json").write_text(json.dumps(described, indent=2), encoding="utf-8")
    return out
