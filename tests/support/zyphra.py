"""Checkpoints in Zyphra's two layouts, written out in loops from what its model classes build.

Nothing here is shared with the package under test: names and shapes are stated from the module trees of
Zyphra/transformers_zamba2 (modeling_zamba2.py) and Zyphra/Zamba2 (mamba_model.py, mamba_block.py), and `hub_of_fork`
says for each hub key where the fork keeps it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from support.reference import hybrid_layers
from support.synthetic import Config, State, make_config

Shapes = dict[str, tuple[int, ...]]
WORDS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}


class Info(NamedTuple):
    """What a conversion sees of a stored tensor."""

    shape: tuple[int, ...]
    dtype: str


def infos(state: Mapping[str, Tensor]) -> dict[str, Info]:
    return {name: Info(tuple(tensor.shape), WORDS[tensor.dtype]) for name, tensor in state.items()}


def make(recipes: Mapping[str, Any], state: Mapping[str, Tensor]) -> State:
    """The tensors of recipes; asserts that each has the shape and dtype its recipe says."""
    made: State = {}
    for name, recipe in recipes.items():
        sources = [state[source] for source in recipe.sources]
        tensor = sources[0] if recipe.make is None else recipe.make(*sources)
        assert tuple(tensor.shape) == (sources[0].shape if recipe.shape is None else recipe.shape), name
        assert WORDS[tensor.dtype] == (WORDS[sources[0].dtype] if recipe.dtype is None else recipe.dtype), name
        assert tensor.is_contiguous(), name
        made[name] = tensor
    return made


def same(a: State, b: State) -> bool:
    """Whether both hold the same names, and equal tensors of equal dtypes."""
    equal = all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a.keys() & b.keys())
    return a.keys() == b.keys() and equal


def classic(pattern: str, **overrides: Any) -> Config:
    """A config whose feed-forward width is the one that Zyphra's code has."""
    config = make_config(
        pattern, **{"hidden_size": 32, "n_mamba_heads": 4, "adapter_rank": 3, "vocab_size": 24} | overrides
    )
    return {**config, "intermediate_size": 4 * config["hidden_size"]}


def _mixer(config: Config) -> Shapes:
    hidden, inner = config["hidden_size"], config["mamba_expand"] * config["hidden_size"]
    states, heads = config["mamba_ngroups"] * config["mamba_d_state"], config["n_mamba_heads"]
    return {
        "dt_bias": (heads,),
        "A_log": (heads,),
        "D": (heads,),
        "in_proj.weight": (inner + inner + states + states + heads, hidden),  # z, x, B, C, dt
        "conv1d.weight": (inner + 2 * states, 1, config["mamba_d_conv"]),
        "conv1d.bias": (inner + 2 * states,),
        "norm.weight": (inner,),
        "out_proj.weight": (hidden, inner),
    }


def _adapters(config: Config, name: str, rows: int, columns: int) -> Shapes:
    """The two lists of one linear layer; as long as there are hybrid layers, in every block."""
    shapes: Shapes = {}
    for position in range(len(hybrid_layers(config))):
        shapes[f"{name}_lora_A_list.{position}.weight"] = (config["adapter_rank"], columns)
        shapes[f"{name}_lora_B_list.{position}.weight"] = (rows, config["adapter_rank"])
    return shapes


def fork_shapes(config: Config) -> Shapes:
    """Zamba2ForCausalLM without its tied lm_head. config: in the classic dialect."""
    hidden, wide = config["hidden_size"], 2 * config["hidden_size"]
    key_rows = config["num_key_value_heads"] * (wide // config["num_attention_heads"])
    shapes: Shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for number in range(config["num_mem_blocks"]):
        block: Shapes = {
            "self_attn.q_proj.weight": (wide, wide),
            "self_attn.k_proj.weight": (key_rows, wide),
            "self_attn.v_proj.weight": (key_rows, wide),
            "self_attn.o_proj.weight": (hidden, wide),
            "feed_forward.linear_fc1.weight": (8 * hidden, hidden),
            "feed_forward.linear_fc2.weight": (hidden, 4 * hidden),
            **_adapters(config, "feed_forward.linear_fc1", 8 * hidden, hidden),
            "input_layernorm.weight": (wide,),
            "pre_ff_layernorm.weight": (hidden,),
        }
        if config["use_shared_attention_adapter"]:
            for name in "qkv":
                block |= _adapters(config, f"self_attn.linear_{name}", wide, wide)
        shapes |= {f"model.blocks.{number}.{name}": shape for name, shape in block.items()}
    for layer in range(config["num_hidden_layers"]):
        shapes |= {f"model.mamba_layers.{layer}.mamba.{name}": shape for name, shape in _mixer(config).items()}
        shapes[f"model.mamba_layers.{layer}.input_layernorm.weight"] = (hidden,)
    for position in range(len(hybrid_layers(config))):
        shapes[f"model.linear_layers.{position}.weight"] = (hidden, hidden)
    return shapes | {"model.final_layernorm.weight": (hidden,)}


def native_shapes(config: Config) -> Shapes:
    """MambaModel. config: in the classic dialect."""
    hidden, wide = config["hidden_size"], 2 * config["hidden_size"]
    shapes: Shapes = {"embedding.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        for name, shape in _mixer(config).items():
            shapes[f"decoder.layers.{layer}.mixer.{'in_proj.0.weight' if 'in_proj' in name else name}"] = shape
        shapes[f"decoder.layers.{layer}.norm.weight"] = (hidden,)
    for number in range(config["num_mem_blocks"]):
        block: Shapes = {
            "sa.mixer.linear_qkv.weight": (3 * wide, wide),
            "sa.mixer.linear_proj.weight": (hidden, wide),
            "sa.norm.weight": (wide,),
            "mlp.mixer.linear_fc1.weight": (8 * hidden, hidden),
            "mlp.mixer.linear_fc2.weight": (hidden, 4 * hidden),
            **_adapters(config, "mlp.mixer.linear_fc1", 8 * hidden, hidden),
            "mlp.norm.weight": (hidden,),
        }
        if config["use_shared_attention_adapter"]:
            for name in "qkv":
                block |= _adapters(config, f"sa.mixer.linear_{name}", wide, wide)
        shapes |= {f"decoder.blocks.{number}.{name}": shape for name, shape in block.items()}
    for layer in hybrid_layers(config):
        shapes[f"decoder.block_map.{layer}.weight"] = (hidden, hidden)
    return shapes | {"decoder.final_layernorm.weight": (hidden,)}


def draw(shapes: Shapes, dtype: torch.dtype = torch.float32, seed: int = 0) -> State:
    """Random tensors; no two values of the checkpoint are alike for a reason."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def is_unused(name: str, config: Config) -> bool:
    """Whether a name in either layout is an adapter's in a block that its position does not run."""
    if "_lora_" not in name:
        return False
    parts = name.split(".")
    block, position = int(parts[parts.index("blocks") + 1]), int(parts[-2])
    return position % config["num_mem_blocks"] != block


def hub_of_fork(state: Mapping[str, Tensor], config: Config) -> State:
    """The hub layout of a checkpoint of the fork, key by key."""
    hub: State = {"model.embed_tokens.weight": state["model.embed_tokens.weight"]}
    hybrid, blocks = hybrid_layers(config), config["num_mem_blocks"]
    for layer in range(config["num_hidden_layers"]):
        there = f"model.mamba_layers.{layer}."
        here = f"model.layers.{layer}."
        if layer in hybrid:
            position = hybrid.index(layer)
            hub[f"{here}linear.weight"] = state[f"model.linear_layers.{position}.weight"]
            if position < blocks:  # the first use of this block
                stored = {
                    name: tensor for name, tensor in state.items() if name.startswith(f"model.blocks.{position}.")
                }
                for name, tensor in stored.items():
                    if not is_unused(name, config):
                        hub[f"{here}shared_transformer.{_hub_suffix(name)}"] = tensor
            here += "mamba_decoder."
        for name in [*_mixer(config)]:
            hub[f"{here}mamba.{name}"] = state[f"{there}mamba.{name}"]
        hub[f"{here}input_layernorm.weight"] = state[f"{there}input_layernorm.weight"]
    return hub | {"model.final_layernorm.weight": state["model.final_layernorm.weight"]}


def _hub_suffix(name: str) -> str:
    _, _, _, module, *rest = name.split(".")  # model.blocks.B.module....
    if "_lora_" in name:
        linear, half = rest[0].removesuffix("_list").split("_lora_")
        linear = {"linear_fc1": "gate_up_proj"}.get(linear, linear)
        return f"{module}.{linear}_adapter_list.{rest[1]}.{'AB'.index(half)}.weight"
    if rest[0] in ("linear_fc1", "linear_fc2"):
        rest[0] = {"linear_fc1": "gate_up_proj", "linear_fc2": "down_proj"}[rest[0]]
    return ".".join([module, *rest])
