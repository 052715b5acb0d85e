"""Weights that another quantizer than bitsandbytes has stored: carried from layout to layout, or refused by name.

Where a format is names and bytes, each tensor is copied under its module's other names, and quantization_config stays
as it is. torchao's types lie in the header of every file, by the weights' names, and are renamed with them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from zamba_compat.errors import CheckpointError
from zamba_compat.layout.quant_state_names import base_of, format_of, part_of

if TYPE_CHECKING:
    from zamba_compat.checkpoint.recipe import Recipe
    from zamba_compat.layout.sharing import SharingMap

_NAMES = "tensor_names"  # of torchao, beside one entry for each of them
_REASONS = {
    "quanto": "transformers reads no checkpoint of quanto, whose own loader wants a list of modules beside it",
    "torchao": "the header of their file does not say of which type they are, so that nothing can load them",
    "unknown": "it is not known what else belongs to them",
}


def quantized_weights(names: Iterable[str], sharing: SharingMap | None = None) -> dict[str, list[str]]:
    """Quantized weight -> its parts (`part_of`), from all stored names; with a map those of all copies."""
    parts: dict[str, list[str]] = {}
    for name in names:
        part = part_of(name)
        if part is not None:
            weight = base_of(name)
            parts.setdefault(weight if sharing is None else sharing.canonical_key(weight), []).append(part)
    return parts


def refuse_uncarried(
    recipes: Mapping[str, Recipe], metadata: Mapping[str, str], sharing: SharingMap, where: str
) -> None:
    """Refuse quantized weights that are more than names and bytes.

    Args:
        recipes: all tensors of the model, made of what is stored.
        metadata: of the files' headers.
        sharing: the model's sharing map.
        where: what to call the checkpoint in errors.

    Raises:
        CheckpointError: there are such weights; the format is named, and why.
    """
    found = {weight: format_of(parts) for weight, parts in quantized_weights(recipes, sharing).items()}
    typed = {
        sharing.canonical_key(base_of(name))
        for name, recipe in recipes.items()
        if base_of(recipe.sources[0]) in metadata
    }
    refused = Counter(
        kind for weight, kind in found.items() if kind in _REASONS and not (kind == "torchao" and weight in typed)
    )
    if refused:
        told = "; ".join(f"{count} in the format of {kind}: {_REASONS[kind]}" for kind, count in refused.items())
        raise CheckpointError(
            f"Quantized weights are stored that cannot be carried over: {told}.",
            where=where,
            remedy="Convert the unquantized checkpoint and quantize it again.",
        )


def refuse_pickled(names: Iterable[str], where: str) -> None:
    """Raises CheckpointError where the types of weights are in headers, which pickled files lack: torchao's."""
    if "torchao" in map(format_of, quantized_weights(names).values()):
        raise CheckpointError(
            "Weights are in the format of torchao, whose types the header of a safetensors file holds.",
            where=where,
            remedy="Write safetensors.",
        )


def renamed_header(metadata: Mapping[str, str], sources: Collection[tuple[str, str]]) -> dict[str, str]:
    """What torchao reads in the header of a file, for tensors under other names; {} where it wrote nothing.

    Args:
        metadata: of all files that the tensors are stored in.
        sources: (new name, stored name) of every tensor.
    """
    if _NAMES not in metadata:
        return {}
    types = {base_of(name): metadata[base_of(old)] for name, old in sources if base_of(old) in metadata}
    return {**types, _NAMES: json.dumps(sorted(types))}
