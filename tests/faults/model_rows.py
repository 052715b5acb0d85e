"""Rows 23 to 25, 27 and 30 to 40: tensors and configs that make up no model, or another one than they say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from faults.arena import ADAPTER, CONFIG, NORM, OWN, STEM, Arena, Q, state
from faults.commands import WRITING
from support import synthetic
from support.synthetic import Config, State
from zamba_compat.operations.convert import Options, convert

Make = Callable[[Arena], Any]


def tensors(change: Callable[[State], State], config: Config | None = None) -> Make:
    """The good checkpoint with its tensors changed."""
    return lambda arena: arena.rewrite(change(dict(state())), config)


def config(**entries: Any) -> Make:
    """The good checkpoint with entries of its config replaced."""
    return lambda arena: arena.change_json("config.json", lambda content: content.update(entries))


def without(key: str) -> Make:
    return lambda arena: arena.change_json("config.json", lambda content: content.pop(key))


def _expanded(found: State) -> State:
    return synthetic.to_expanded(found, CONFIG)


def _with(name: str, value: float) -> Callable[[State], State]:
    def change(found: State) -> State:
        changed = found[name].clone()
        changed.view(-1)[1] = value
        return found | {name: changed}

    return change


def _wrong_slots_twice(found: State) -> State:
    suffix = "feed_forward.gate_up_proj_adapter_list.0.0.weight"
    right = found.pop(STEM.format(2) + suffix)
    return found | {STEM.format(layer) + suffix: right + n for n, layer in enumerate((3, 7))}


FIRST, LATER = Q.format(2), Q.format(5)
mixed_dtypes = tensors(lambda found: _expanded(found) | {LATER: found[FIRST].float()})
zero_size = tensors(lambda found: found | {NORM: torch.zeros(0, dtype=torch.bfloat16)})
nan, infinity = tensors(_with(FIRST, float("nan"))), tensors(_with(FIRST, float("inf")))
unknown = tensors(lambda found: found | {"model.layers.2.extra": torch.ones(1)})
lookalike = tensors(lambda found: found | {FIRST.replace("weight", "\uff57eight"): found[FIRST].clone()})
no_adapter = tensors(lambda found: synthetic.drop(found, ADAPTER))
wrong_slots = tensors(lambda found: synthetic.to_partial(found, CONFIG, "wrong-slots"))
wrong_slots_twice = tensors(_wrong_slots_twice)
divergent = tensors(lambda found: synthetic.to_divergent(found, CONFIG))
expanded = tensors(_expanded)
no_copy = tensors(lambda found: synthetic.drop(found, FIRST))
no_own = tensors(lambda found: synthetic.drop(found, OWN))
another_shape = tensors(lambda found: found | {OWN: torch.ones(7, dtype=torch.bfloat16)})


def unknown_allowed(arena: Arena) -> None:
    unknown(arena)
    for command in WRITING:
        arena.arguments[command] = ["--allow-unknown"]


def divergent_resolved(arena: Arena) -> None:
    divergent(arena)
    for command in WRITING:
        arena.arguments[command] = ["--resolve", "mean"]


def quantized(arena: Arena) -> None:
    arena.source.rename(arena.top / "plain")
    convert(arena.top / "plain", arena.source, Options(quantize="nf4"))
