"""The model card of a merge, in the form that mergekit's users know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .config import MergeConfig
from .methods import METHODS
from .parents import Parents


def merge_card(config: MergeConfig, parents: Parents, name: str, more: Sequence[str] = ()) -> str:
    """README.md of a merge.

    Args:
        config: the merge.
        parents: its models; those with a hub id are named as base_model.
        name: of the result.
        more: sentences on what else was done.
    """
    import yaml  # type: ignore[import-untyped]

    names = dict.fromkeys(str(parent.checkpoint.identity["name"]) for parent in parents)
    hub_ids = [name for name in names if "/" in name]
    facts: dict[str, Any] = {
        "base_model": hub_ids,
        "library_name": "transformers",
        "tags": ["mergekit", "merge", "zamba_compat"],
    }
    method = METHODS[config.method]
    models = "\n".join(f"* {parent.checkpoint.identity['name']}" for parent in parents)
    base = parents[config.base_model].checkpoint.identity["name"]
    rest = "".join(f"{sentence}\n" for sentence in more)
    fence = "`" * max(3, _longest(config.text) + 1)
    return (
        f"---\n{yaml.safe_dump(facts, sort_keys=False)}---\n# {name}\n\n"
        f"A merge of language models, made by zamba_compat from a configuration of mergekit.\n\n"
        f"## Merge Details\n### Merge Method\n\n[{method.title}]({method.url}), with {base} as the base. "
        f"{_RULES[config.shared]}\n{rest}\n### Models Merged\n\n{models}\n\n### Configuration\n\n"
        f"{fence}yaml\n{config.text.rstrip()}\n{fence}\n"
    )


_RULES = {
    "mean": "A tensor of a shared block has the mean of what the configuration says at the layers that use it.",
    "first": "A tensor of a shared block has what the configuration says at the first layer that uses it.",
    "middle": "A tensor of a shared block has what the configuration says at the middle one of the layers that use it.",
    "separate": "Every position is a block of its own, with what the configuration says at its layer.",
}


def _longest(text: str) -> int:
    """The longest run of backticks."""
    longest = run = 0
    for character in text:
        run = run + 1 if character == "`" else 0
        longest = max(longest, run)
    return longest
