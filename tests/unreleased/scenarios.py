"""What a user does with a model, each compared with the independent reference: see `SCENARIOS`.

A scenario returns when everything is right, and raises `Wrong` when a number is not the right one, or a model holds
more than it has to. It knows the public API of transformers alone, so it means the same in any release.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

from conformance import quantization
from conformance.helpers import TOLERANCE, distinct_parameters, lay_out, load, logits, relative
from conformance.helpers import case as make_case
from support import synthetic

PATTERN = "7B"  # two blocks, two groups, rotary embedding
LENGTH = 41  # beyond two chunks


class Wrong(Exception):
    """A result that is not the right one; the message says which and by how much."""


def near(got: Tensor, want: Tensor, tolerance: float = TOLERANCE, what: str = "logits") -> None:
    """Raises Wrong when two results differ by more than `tolerance`, relative to the second."""
    error = relative(got, want)
    if not error < tolerance:
        raise Wrong(f"{what} off by {error:.1e}")


def held_once(model: nn.Module, state: synthetic.State) -> None:
    """Raises Wrong when a model holds more numbers, or fewer, than the hub layout has."""
    held, wanted = distinct_parameters(model), sum(tensor.numel() for tensor in state.values())
    if held != wanted:
        raise Wrong(f"{held:,} parameters held, not {wanted:,}")


def all_quantized(model: nn.Module, blocks: int) -> None:
    """Raises Wrong when a linear of the layers is not quantized, or a block's weights are held more than once."""
    linears = quantization.linears(model)
    left = [name for name, module in linears.items() if not quantization.is_quantized(module)]
    if left:
        raise Wrong(f"{len(left)} of {len(linears)} linears not quantized: {left[0]}")
    storages: dict[str, set[int]] = {}
    for name, module in linears.items():
        _, marker, suffix = name.partition(".shared_transformer.")
        if marker:
            storages.setdefault(suffix, set()).add(module.weight.data_ptr())
    for suffix, found in storages.items():
        if len(found) != (1 if "adapter_list" in suffix else blocks):
            raise Wrong(f"{suffix} held {len(found)} times")


def write(directory: Path, case: synthetic.Case, layout: str = "hub", **options: Any) -> Path:
    return synthetic.write_checkpoint(directory, lay_out(case.state, case.config, layout), case.config, **options)


def stored_names(directory: Path) -> list[str]:
    names: list[str] = []
    for file in directory.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            names += opened.keys()
    return sorted(names)


def loads(layout: str, pattern: str = PATTERN, **config: Any) -> Callable[[Path], None]:
    def scenario(tmp: Path) -> None:
        case = make_case(pattern, length=LENGTH, **config)
        model = load(write(tmp, case, layout))
        near(logits(model, case.ids), case.logits, 1e-4 if pattern == synthetic.ZAMBA1 else TOLERANCE)
        held_once(model, case.state)

    return scenario


def divergent(tmp: Path) -> None:
    case = make_case(PATTERN, length=LENGTH)
    state = synthetic.to_divergent(case.state, case.config)
    want = synthetic.forward(*synthetic.to_untied(state, case.config), case.ids)
    near(logits(load(synthetic.write_checkpoint(tmp, state, case.config)), case.ids), want)


def untied_embeddings(tmp: Path) -> None:
    case = make_case(PATTERN, length=LENGTH)
    state = {**case.state, "lm_head.weight": torch.flip(case.state["model.embed_tokens.weight"], (0,))}
    config = {**case.config, "tie_word_embeddings": False}
    model = load(synthetic.write_checkpoint(tmp, state, config))
    near(logits(model, case.ids), case.logits.flip(-1))
    held_once(model, state)


def inner_padding(tmp: Path) -> None:
    """Padding on the left, on the right and between tokens, with the positions that go with it."""
    case = make_case(PATTERN, length=LENGTH)
    ids = case.ids.repeat(3, 1)
    mask = torch.ones_like(ids)
    mask[0, 9:14] = mask[1, :7] = mask[2, 30:] = mask[2, 20:23] = 0
    want = synthetic.forward(case.state, case.config, ids, mask)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    got = logits(load(write(tmp, case)), ids, attention_mask=mask, position_ids=positions)
    near(got[mask.bool()], want[mask.bool()])


def decoding(tmp: Path) -> None:
    """A prompt, several tokens after it, then one at a time; and what generate() makes of it."""
    case = make_case(PATTERN, length=LENGTH)
    model = load(write(tmp, case))
    cache, got = None, []
    for part in case.ids.split([19, 15, *[1] * 7], 1):
        with torch.no_grad():
            output = model(part, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        got.append(output.logits)
    near(torch.cat(got, 1), case.logits)
    ids = case.ids[:, :20]
    new = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
    best = synthetic.forward(case.state, case.config, new[:, :-1])[:, 19:].argmax(-1)
    if not torch.equal(best, new[:, 20:]):
        raise Wrong("generate() does not take the most likely token")


def saved(tmp: Path) -> None:
    """What is written has every tensor once, and reads back to the same model."""
    case = make_case(PATTERN, length=LENGTH, use_long_context=True)
    model = load(write(tmp / "a", case, "expanded"))
    model.save_pretrained(tmp / "b")
    names = stored_names(tmp / "b")
    if names != sorted(case.state):
        raise Wrong(f"{len(names)} tensors saved, not {len(case.state)}")
    near(logits(load(tmp / "b"), case.ids), case.logits)


def quantized(method: str, *, layout: str = "hub", save: bool = False) -> Callable[[Path], None]:
    """Quantized while loading; `save`: written and loaded again, too."""

    def scenario(tmp: Path) -> None:
        case = make_case(PATTERN, length=LENGTH)
        options = {"quantization_config": quantization.bnb_config(method), "torch_dtype": torch.float32}
        model = load(write(tmp / "a", case, layout), **options)
        if save:
            model.save_pretrained(tmp / "b")
            model = load(tmp / "b", torch_dtype=torch.float32)
        all_quantized(model, case.config["num_mem_blocks"])
        want = quantization.reference_logits(PATTERN, method)
        model.train()  # bitsandbytes' exact path on a CPU; there is no dropout
        near(logits(model, case.ids), want, quantization.PLAIN)
        model.eval()
        near(logits(model, case.ids), want, quantization.KERNEL)

    return scenario


def device_map(tmp: Path) -> None:
    """The first positions of the blocks on the CPU, the others on disk."""
    case = make_case(PATTERN, length=LENGTH)
    firsts = case.config["hybrid_layer_ids"][: case.config["num_mem_blocks"]]
    rest = ("model.embed_tokens", "model.final_layernorm", "model.rotary_emb", "lm_head")
    places = dict.fromkeys(rest, "cpu")
    for layer in range(case.config["num_hidden_layers"]):
        places[f"model.layers.{layer}"] = "cpu" if layer in firsts else "disk"
    model = load(write(tmp / "a", case), device_map=places, offload_folder=str(tmp / "b"))
    near(logits(model, case.ids), case.logits)


class Scenario(NamedTuple):
    """run: in an empty folder. groups: the groups of adapters of which one is to blame when it comes out wrong."""

    run: Callable[[Path], None]
    groups: tuple[str, ...]


LOADING = ("tying", "loading", "config")

SCENARIOS: dict[str, Scenario] = {
    # time_step_min as published; elsewhere it is too small to matter.
    "hub": Scenario(loads("hub", time_step_min=0.001), (*LOADING, "numbers")),
    "expanded": Scenario(loads("expanded"), LOADING),
    "partial": Scenario(loads("later-layer"), LOADING),
    "wrong slots": Scenario(loads("wrong-slots"), LOADING),
    "divergent": Scenario(divergent, LOADING),
    "embeddings untied": Scenario(untied_embeddings, LOADING),
    "long context": Scenario(loads("hub", use_long_context=True), (*LOADING, "numbers")),
    "inner padding": Scenario(inner_padding, ("numbers",)),
    "decoding": Scenario(decoding, ("numbers",)),
    "saved": Scenario(saved, ("saving", *LOADING)),
    "zamba": Scenario(loads("later-layer", synthetic.ZAMBA1), LOADING),
    "NF4": Scenario(quantized("nf4"), ("quantization", *LOADING)),
    "NF4 saved": Scenario(quantized("nf4-double", layout="expanded", save=True), ("quantization", "saving", *LOADING)),
    "int8": Scenario(quantized("int8"), ("quantization", *LOADING)),
    "int8 saved": Scenario(quantized("int8", save=True), ("quantization", "saving", *LOADING)),
    "device_map": Scenario(device_map, ("placement", *LOADING)),
}
