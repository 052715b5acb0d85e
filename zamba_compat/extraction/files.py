"""The small files of an adapter: adapter_config.json and the model card."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from zamba_compat.merging.parents import Parent

from .plan import LINEARS, Difference
from .settings import Energy, ExtractOptions

_SLOT = re.compile(r".*\.([a-z_]+_adapter_list\.[0-9]+\.[01])")


def kind_of(module: str) -> str:
    """What PEFT can call all modules of one kind by: the end of their names."""
    slot = _SLOT.fullmatch(module)
    return slot[1] if slot else module.rpartition(".")[2]


def target_modules(adapted: Sequence[Difference], everything: Sequence[Difference]) -> tuple[str, ...]:
    """The ends of names that match what is adapted and nothing else, in either form of the shared blocks.

    Args:
        adapted: the matrices in the adapter.
        everything: all tensors of the model.
    """
    names = {place.rpartition(".")[0] for one in adapted for place in one.places}
    missing = {kind_of(one.module) for one in everything if one.name.endswith(".weight") and one.module not in names}
    # An adapter list's element has more names in the model than in the file: those of positions that do not use it.
    whole = {kind for kind in map(kind_of, names) if kind in LINEARS and kind not in missing}
    single = (name.removeprefix("model.") for name in names if kind_of(name) not in whole)
    return (*sorted(whole), *sorted(single, key=_in_order))


def ranks(adapted: Sequence[Difference], rank: int) -> dict[str, int]:
    """Kind -> rank of the modules with a side that is shorter than the rank."""
    found = {kind_of(one.module): min(one.info.shape) for one in adapted if min(one.info.shape) < rank}
    return dict(sorted(found.items(), key=lambda item: _in_order(item[0])))


def adapter_config(
    base: str, parent: Parent, rank: int, targets: Sequence[str], saved: Sequence[str], lower: Mapping[str, int]
) -> dict[str, Any]:
    """adapter_config.json. With lora_alpha = r everywhere, what is added to a weight is B A itself."""
    causal = any(str(name).endswith("ForCausalLM") for name in parent.config.get("architectures") or ())
    return {
        "alpha_pattern": dict(lower),
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "modules_to_save": list(saved) or None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": dict(lower),
        "revision": None,
        "target_modules": list(targets),
        "task_type": "CAUSAL_LM" if causal else None,
        "use_dora": False,
        "use_rslora": False,
    }


def card(
    base: Parent,
    tuned: Parent,
    options: ExtractOptions,
    name: str,
    components: Mapping[str, Energy],
    total: Energy,
    left: Collection[str],
) -> str:
    """README.md of the adapter."""
    import yaml  # type: ignore[import-untyped]

    one, other = (str(parent.checkpoint.identity["name"]) for parent in (base, tuned))
    facts: dict[str, Any] = {"base_model": one} if "/" in one else {}  # a hub id
    facts |= {"library_name": "peft", "tags": ["lora", "zamba_compat"]}
    rows = "".join(f"| {part} | {energy.share} | {energy.left} |\n" for part, energy in components.items())
    form = (
        "Every position of a shared block has factors of its own: call `zamba_compat.separate_modules(model)` before "
        "PEFT where transformers is older than 5."
        if options.per_position
        else "A shared block has one pair of factors for each weight. They stand under every name of the weight, so "
        "that the adapter loads with and without `zamba_compat.share_modules`."
    )
    what = f"{len(left)} tensors differ and are not carried. " if left else ""
    return (
        f"---\n{yaml.safe_dump(facts, sort_keys=False)}---\n# {name}\n\n"
        f"A LoRA of rank {options.rank}: what makes {other} of {one}, extracted by zamba_compat.\n\n"
        f"{form}\n\n## What of the difference it holds\n\n| part | squares kept | tensors left out |\n|---|---|---|\n"
        f"{rows}| all | {total.share} | {total.left} |\n\n{what}"
        "Factors: the truncated singular value decomposition of the difference of each weight.\n"
    )


def _in_order(name: str) -> tuple[Any, ...]:
    return tuple(f"{int(part):06}" if part.isdigit() else part for part in name.split("."))
