"""The section of a model card that says what conversions did."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zamba_compat.checkpoint.resolving.resolve import Resolution

_TITLE = "## Conversion"
_MARK = "<!-- zamba_compat: conversion -->"
_SECTION = re.compile(rf"{re.escape(_TITLE)}\n+{re.escape(_MARK)}\n+(?:- .*(?:\n|\Z))*")
_RESOLVED = {
    "first": "tied to the copy of the first layer",
    "mean": "tied to their mean",
    "karcher": "tied to their mean on the sphere",
    "untie": "kept apart, one block per position (exact)",
    "absorb": "tied to their mean, the difference of each position in its own adapters as far as their rank holds it",
}


def steps(before: str, after: str, resolution: Resolution, changes: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """What a conversion did, in sentences for `with_conversion`; none where nothing changed but the files.

    Args:
        before: the source's layout.
        after: the output's.
        resolution: what became of copies that differ.
        changes: entries of the config, name -> (before, after).
    """
    done = []
    if before != after and not (before == "untied" and after == "hub"):
        done.append(f"From the {before} to the {after} layout by zamba_compat.")
    if resolution.residuals:
        worst = max(residual.worst for residual in resolution.residuals)
        choice = "absorb" if any(r.choice == "absorb" for r in resolution.residuals) else resolution.residuals[0].choice
        left = "" if choice == "untie" else f"; relative error of a tensor at a position at most {worst:.2g}"
        done.append(f"{len(resolution.residuals)} shared tensors had copies that differ: {_RESOLVED[choice]}{left}.")
    for key in ("torch_dtype", "adapter_rank", "num_mem_blocks"):
        if key in changes and None not in changes[key]:
            done.append(f"`{key}` changed from {changes[key][0]} to {changes[key][1]}.")
    return done


def with_conversion(card: str, done: Sequence[str]) -> str:
    """A README.md with what was done added to its section "Conversion", which is made at the end if it is not there.

    Args:
        card: the text, "" if there is none.
        done: a sentence per step, without line breaks; none leaves a card that has the section as it is.
    """
    items = "".join(f"- {step}\n" for step in done)
    found = _SECTION.search(card)
    if found is not None:
        section = found[0] if found[0].endswith("\n") or not items else found[0] + "\n"
        return card[: found.start()] + section + items + card[found.end() :]
    before = f"{card.rstrip()}\n\n" if card.strip() else ""
    return (
        f"{before}{_TITLE}\n\n{_MARK}\n\n{items or '- Written again by zamba_compat; no tensor changed.'}\n".rstrip()
        + "\n"
    )
