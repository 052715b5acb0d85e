"""Rows 41 to 45: parents that do not fit each other, and configurations that cannot be meant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from faults.arena import OWN, Arena, Q, state


def one_parent_only(arena: Arena) -> None:
    arena.rewrite({name: tensor for name, tensor in state().items() if name != OWN})


def setting(**parameters: Any) -> Callable[[Arena], None]:
    def make(arena: Arena) -> None:
        if parameters["t"] != parameters["t"]:
            arena.merge = {"parameters": {"t": ".nan"}}
        else:
            arena.merge = {"parameters": parameters}

    return make


def other_template(arena: Arena) -> None:
    (arena.source / "chat_template.jinja").write_text("{{ messages }}")
    (arena.other / "chat_template.jinja").write_text("{{ other }}")
    arena.merge = {"tokenizer_source": None}


def zeros(arena: Arena) -> None:
    name = Q.format(2)
    arena.rewrite(dict(state()) | {name: torch.zeros_like(state()[name])})


def aliases(arena: Arena) -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10))]
    arena.yaml = "\n".join([*lines, "merge_method: slerp"])


def tags(arena: Arena) -> None:
    marker = arena.top / "ran"
    arena.yaml = f"merge_method: !!python/object/apply:os.mkdir ['{marker}']\n"
    arena.absent.append(marker)
