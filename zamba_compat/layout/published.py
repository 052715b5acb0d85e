"""The three published Zamba2 shapes, as config.json content, with what a right build of each must count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """One published model.

    Attributes:
        config: its config.json in the classic dialect, without what every release derives.
        parameters: distinct numbers, each shared block counted once.
        keys: tensors in the published checkpoint.
    """

    config: dict[str, Any]
    parameters: int
    keys: int


def _shape(hidden: int, layers: int, hybrid: tuple[int, ...], parameters: int, keys: int, **rest: Any) -> Shape:
    kinds = ["hybrid" if layer in hybrid else "mamba" for layer in range(layers)]
    config = {
        "architectures": ["Zamba2ForCausalLM"],
        "model_type": "zamba2",
        "vocab_size": 32000,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "layers_block_type": kinds,
        "hybrid_layer_ids": list(hybrid),
        "intermediate_size": 4 * hidden,
        "n_mamba_heads": hidden // 32,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "chunk_size": 256,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "adapter_rank": 128,
        "max_position_embeddings": 4096,
        "rope_theta": 10000,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
        **rest,
    }
    return Shape(config, parameters, keys)


PUBLISHED = {
    "1.2B": _shape(
        2048, 38, (5, 11, 17, 23, 29, 35), 1_215_064_704, 406,
        num_mem_blocks=1, mamba_d_state=128, mamba_ngroups=1, use_mem_rope=True, use_shared_attention_adapter=True,
    ),
    "2.7B": _shape(
        2560, 54, (6, 12, 18, 24, 30, 36, 42, 47, 51), 2_662_214_560, 531,
        num_mem_blocks=2, mamba_d_state=64, mamba_ngroups=1, use_mem_rope=False, use_shared_attention_adapter=False,
    ),
    "7B": _shape(
        3584, 81, (6, 11, 17, 23, 29, 35, 41, 47, 53, 59, 65, 71, 77), 7_356_749_648, 786,
        num_mem_blocks=2, mamba_d_state=64, mamba_ngroups=2, use_mem_rope=True, use_shared_attention_adapter=False,
    ),
}  # fmt: skip
