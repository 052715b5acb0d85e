"""A model on disk as the hub has it: config, bfloat16 weights in hub layout, byte-level tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from .model import TinyZamba2
from .shape import BOS, EOS, FIRST_BYTE, PAD, SPECIAL, Shape

MAX_POSITIONS = 4096


def config(s: Shape) -> dict[str, Any]:
    """config.json in the dialect of the published checkpoints: "mamba"/"hybrid", rope_theta, torch_dtype."""
    kinds = ["hybrid" if i in s.hybrid_layer_ids else "mamba" for i in range(s.num_hidden_layers)]
    return {
        "adapter_rank": s.adapter_rank,
        "add_bias_linear": False,
        "architectures": ["Zamba2ForCausalLM"],
        "attention_dropout": 0.0,
        "attention_head_dim": s.attention_head_dim,
        "attention_hidden_size": s.attention_width,
        "bos_token_id": BOS,
        "chunk_size": 256,
        "eos_token_id": EOS,
        "hidden_act": "gelu",
        "hidden_size": s.hidden_size,
        "hybrid_layer_ids": list(s.hybrid_layer_ids),
        "initializer_range": 0.02,
        "intermediate_size": s.intermediate_size,
        "kv_channels": s.hidden_size // s.num_attention_heads,
        "layers_block_type": kinds,
        "mamba_d_conv": s.mamba_d_conv,
        "mamba_d_state": s.mamba_d_state,
        "mamba_expand": s.mamba_expand,
        "mamba_headdim": s.mamba_width // s.n_mamba_heads,
        "mamba_ngroups": s.mamba_ngroups,
        "max_position_embeddings": MAX_POSITIONS,
        "model_type": "zamba2",
        "n_mamba_heads": s.n_mamba_heads,
        "num_attention_heads": s.num_attention_heads,
        "num_hidden_layers": s.num_hidden_layers,
        "num_key_value_heads": s.num_attention_heads,
        "num_logits_to_keep": 1,
        "num_mem_blocks": s.num_mem_blocks,
        "num_query_groups": s.num_attention_heads,
        "pad_token_id": PAD,
        "rms_norm_eps": s.rms_norm_eps,
        "rope_theta": s.rope_theta,
        "tie_word_embeddings": True,
        "time_step_floor": 1e-4,
        "time_step_limit": None,
        "time_step_max": s.time_step_max,
        "time_step_min": s.time_step_min,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.57.6",
        "use_cache": True,
        "use_conv_bias": True,
        "use_long_context": False,
        "use_mem_eff_path": False,
        "use_mem_rope": True,
        "use_shared_attention_adapter": False,
        "vocab_size": s.vocab_size,
    }


def tokenizer() -> Tokenizer:
    """One token per byte, no merges: byte b is id b + 3. The begin token comes first."""
    # Sorted by code point, the byte alphabet's printable characters come before its stand-ins; ids follow bytes.
    vocabulary = {token: i for i, token in enumerate(SPECIAL)}
    vocabulary |= {character: FIRST_BYTE + byte for byte, character in enumerate(byte_alphabet())}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    made.decoder = decoders.ByteLevel()
    bos = SPECIAL[BOS]
    made.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, BOS)]
    )
    return made


def byte_alphabet() -> list[str]:
    """The character that stands for each byte 0..255 in a byte-level vocabulary.

    Printable Latin-1 bytes stand for themselves; the others take the code points from 256 on, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte if byte in printable else 256 + rest.index(byte)) for byte in range(256)]


def save(model: TinyZamba2, folder: Path) -> None:
    """Write a checkpoint directory, replacing files that are there."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: value.to(torch.bfloat16).contiguous() for key, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _write(folder / "config.json", config(model.shape))
    _write(
        folder / "generation_config.json",
        {"_from_model_config": True, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD},
    )
    tokenizer().save(str(folder / "tokenizer.json"))
    names = dict(zip(("pad_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    _write(folder / "special_tokens_map.json", names)
    settings = {
        "clean_up_tokenization_spaces": False,
        "model_max_length": MAX_POSITIONS,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    _write(folder / "tokenizer_config.json", settings | names)


def load(folder: Path, shape: Shape | None = None) -> TinyZamba2:
    """The model in a directory that save() wrote, in float32."""
    model = TinyZamba2(shape or Shape())
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({key: value.float() for key, value in weights.items()})
    return model.eval()


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
