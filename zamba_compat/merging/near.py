"""Names close to one that is wrong."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from difflib import get_close_matches

# What other architectures call the parts of a layer, and the part of a Zamba2 name that says the same.
_WORDS = {
    "mlp": "feed_forward",
    "ffn": "feed_forward",
    "feedforward": "feed_forward",
    "feed-forward": "feed_forward",
    "ssm": "mamba",
    "mixer": "mamba",
    "attention": "self_attn",
    "attn": "self_attn",
    "qkv": "self_attn",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
    "lora": "adapter_list",
    "adapter": "adapter_list",
    "shared_block": "shared_transformer",
    "wte": "embed_tokens",
    "embedding": "embed_tokens",
    "norm": "layernorm",
    "rmsnorm": "layernorm",
    "input_norm": "input_layernorm",
    "post_attention_layernorm": "pre_ff_layernorm",
    "lm_head": "embed_tokens",
}


def near(word: str, known: Iterable[str]) -> str:
    """A sentence that asks whether one of `known` was meant, with a blank before it; "" where none is close."""
    found = get_close_matches(word.lower(), list(known), n=1, cutoff=0.75)
    return f" Was {found[0]} meant?" if found else ""


def near_filters(word: str, names: Collection[str]) -> list[str]:
    """Parts of the tensors' names that a filter which matches none may have meant, the likeliest first."""
    bare = word.strip("*.^$ ").replace(".*", "").replace("\\", "")
    found = []
    if bare != word and bare and any(bare in name for name in names):
        found.append(bare)  # a pattern, where a part of the name is asked for
    lowered = bare.lower()
    for theirs, ours in _WORDS.items():
        if theirs in lowered.split(".") and any(ours in name for name in names):
            found.append(ours)
    if lowered != bare and any(lowered in name for name in names):
        found.append(lowered)
    parts = {part for name in names for part in name.split(".") if not part.isdigit()}
    tails = {name.split(".", 3)[-1] for name in names}
    found += get_close_matches(bare, sorted(parts), n=3, cutoff=0.6)
    found += get_close_matches(bare, sorted(tails), n=2, cutoff=0.8)
    return list(dict.fromkeys(found))[:4]
