"""Compare Zyphra's own code with the conversion of its layouts: logits, tensors and configs, in small and on the CPU.

python tools/check_zyphra.py TRANSFORMERS_ZAMBA2 ZAMBA2

The two arguments are checkouts of Zyphra/transformers_zamba2 and Zyphra/Zamba2; einops must be installed. Their model
and config files run unchanged. Plain PyTorch stands in for what they import: the fused Mamba2 kernels, the attention of
transformer_engine, and transformers' base classes, of which the fork needs a release older than those supported here.
The models are double, but the fork's norms, rotary angles, softmax and logits are single in its code.

A row of the table holds the largest difference of logits from tests/support/reference.py on the converted tensors,
relative to the largest logit: of the fork's model, of the standalone model that its own code renames from the fork's
tensors, and of the one it loads from ours; then the smallest such difference after one deliberate mistake, for the
scale. "-" where the standalone code has no such model. Exit status 1 if a difference exceeds 1e-5, a mistake stays
below 1e-2, or a tensor or config entry is not what it was after a round trip or a renaming.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from _zyphra.stand_ins import FORK, stand_in

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.reference import forward, relative_difference  # noqa: E402
from support.synthetic import PATTERNS, make_config, make_ids  # noqa: E402
from zamba_compat.checkpoint.layouts import zyphra_fork, zyphra_native  # noqa: E402
from zamba_compat.checkpoint.layouts.zyphra import zyphra_words  # noqa: E402
from zamba_compat.errors import ConfigError  # noqa: E402

CASES: list[tuple[str, dict[str, Any]]] = [(pattern, {}) for pattern in PATTERNS]
CASES += [("7B", {"use_long_context": True}), ("7B", {"rope_theta": 500}), ("1.2B", {"add_bias_linear": True})]
TOLERANCE, VISIBLE = 1e-5, 1e-2
LENGTH = 24
State = dict[str, Tensor]


class Info(NamedTuple):
    """What the conversion asks of a stored tensor."""

    shape: tuple[int, ...]
    dtype: str


def fill(model: nn.Module, seed: int) -> None:
    """Random weights that matter in every parameter, those of adapters no position uses among them.

    All are bfloat16 values, as published ones: the standalone code rounds A_log to them when it loads.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            if name.endswith(("dt_bias", "A_log")):
                noise -= 2 * name.endswith("dt_bias")
            elif weight.ndim == 1:
                noise = 1 + 0.3 * noise
            elif "embed" not in name:
                noise *= (0.5 if "out_proj" in name else 1.0) / weight.shape[-1] ** 0.5
            weight.copy_(noise.bfloat16())


def infos(state: State) -> dict[str, Info]:
    return {name: Info(tuple(tensor.shape), "F64") for name, tensor in state.items()}


def convert(code: Any, way: str, state: State, config: Mapping[str, Any], **options: Any) -> tuple[dict, State]:
    """Run to_hub or from_hub of a layout's module on tensors in memory."""
    out, recipes = getattr(code, way)(infos(state), config, where="the model in memory", **options)
    made = {}
    for name, recipe in recipes.items():
        sources = [state[source] for source in recipe.sources]
        made[name] = sources[0] if recipe.make is None else recipe.make(*sources)
    return out, made


def same(a: State, b: State) -> bool:
    """Whether both hold the same names and equal tensors."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def mistakes(hub: State, heads: int | None) -> dict[str, State]:
    """The converted tensors with one thing wrong each, by what it is. heads: None if q, k and v stay apart."""
    wrong = {}
    for what, part in (("gate and up", "gate_up_proj.weight"), ("adapter halves", "gate_up_proj_adapter_list.")):
        keys = [key for key in hub if part in key and not key.endswith(".0.weight")]
        wrong[what] = {key: hub[key].roll(len(hub[key]) // 2, 0) for key in keys}
    wrong["q, k and v as thirds"] = {}
    for key in (key for key in hub if ".q_proj." in key and heads is not None):
        names = [key.replace("q_proj", f"{part}_proj") for part in "qkv"]
        thirds = zyphra_native.interleave(*(hub[name] for name in names), heads=heads).chunk(3)
        wrong["q, k and v as thirds"] |= dict(zip(names, thirds, strict=True))
    adapters = [key for key in hub if "_adapter_list" in key and key.endswith(".1.weight")]
    wrong["adapters rotated"] = {}
    for kind in {key.split("_adapter_list")[0].rpartition(".")[2] for key in adapters}:
        group = [key for key in adapters if f".{kind}_adapter_list" in key]
        wrong["adapters rotated"] |= {key: hub[other] for key, other in zip(group, group[1:] + group[:1], strict=True)}
    linear = [key for key in hub if key.endswith(".linear.weight")]
    wrong["linear rotated"] = {a: hub[b] for a, b in zip(linear, linear[1:] + linear[:1], strict=True)}
    return {what: hub | tensors for what, tensors in wrong.items() if tensors}


def fork_logits(words: Mapping[str, Any], ids: Tensor) -> tuple[State, Tensor]:
    """The tensors and the logits of a random model that the fork's own code builds."""
    package = f"{FORK}.models.zamba2"
    config = importlib.import_module(f"{package}.configuration_zamba2").Zamba2Config(**words)
    model = importlib.import_module(f"{package}.modeling_zamba2").Zamba2ForCausalLM(config).double().eval()
    model.lm_head.weight = model.model.embed_tokens.weight
    fill(model, seed=len(str(words)))
    with torch.no_grad():
        logits = model(ids, use_cache=False, num_logits_to_keep=None, return_dict=False)[0]
    return {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}, logits


def native_logits(name: str, state: State, words: Mapping[str, Any], ids: Tensor) -> tuple[State, Tensor]:
    """The tensors and the logits of the model that the standalone code loads from a state dict and a config.json.

    name: "Zyphra/Zamba2-2.7B" for tensors in its own layout; it renames those of any other model from the fork's.
    """
    code = importlib.import_module("mamba_model")
    code.load_config_hf = lambda name: dict(words)
    code.load_state_dict_hf = lambda name: dict(state)
    model = code.MambaModel.from_pretrained(name).double().eval()
    with torch.no_grad():
        return dict(model.state_dict()), model(ids.T)


def check(pattern: str, overrides: Mapping[str, Any]) -> bool:
    """Print the row of one model; returns whether everything is as it should be."""
    start = make_config(pattern, intermediate_size=256, tie_word_embeddings=True, **overrides)
    ids, words = make_ids(start, LENGTH), zyphra_words(start)
    state, logits = fork_logits(words, ids)
    config, hub = convert(zyphra_fork, "to_hub", state, words, keep_unused=True)
    right = forward(hub, config, ids)
    differences = [relative_difference(logits, right)]
    back_words, back = convert(zyphra_fork, "from_hub", hub, config)
    exact = same(back, state) and back_words.items() >= words.items()

    heads: int | None = start["num_attention_heads"]
    try:
        native_words, native = convert(zyphra_native, "from_hub", hub, config)
    except ConfigError:
        heads = None
    else:
        renamed, logits = native_logits("another", state, words, ids)
        differences.append(relative_difference(logits, right))
        loaded, logits = native_logits("Zyphra/Zamba2-2.7B", native, native_words, ids)
        differences.append(relative_difference(logits, right))
        back_config, back = convert(zyphra_native, "to_hub", native, native_words, keep_unused=True)
        exact = exact and same(renamed, native) and same(loaded, native) and same(back, hub) and back_config == config

    wrong = min(relative_difference(forward(other, config, ids), right) for other in mistakes(hub, heads).values())
    figures = [f"{figure:.1e}" for figure in differences] + ["-"] * (3 - len(differences))
    label = " ".join([pattern, *overrides])
    print(f"{label:22}" + "".join(f"{figure:>10}" for figure in [*figures, f"{wrong:.1e}"]), end="   ")
    print("equal" if exact else "DIFFERENT")
    return exact and max(differences) <= TOLERANCE and wrong >= VISIBLE


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fork", type=Path, help="checkout of Zyphra/transformers_zamba2")
    parser.add_argument("native", type=Path, help="checkout of Zyphra/Zamba2")
    options = parser.parse_args()
    stand_in(options.fork, options.native)
    torch.set_default_dtype(torch.float64)
    print(f"{'model':22}{'fork':>10}{'renamed':>10}{'native':>10}{'mistake':>10}   tensors and configs")
    return 0 if all([check(pattern, overrides) for pattern, overrides in CASES]) else 1


if __name__ == "__main__":
    sys.exit(main())
