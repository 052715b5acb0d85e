"""The dtype of a converted checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from zamba_compat.checkpoint.dtypes import DTYPES, to_torch
from zamba_compat.checkpoint.layouts.contents import Contents, outcomes
from zamba_compat.checkpoint.recipe import Recipe
from zamba_compat.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor


_FLOATS = ("F16", "BF16", "F32", "F64")


def cast(
    config: dict[str, Any], recipes: dict[str, Recipe], contents: Contents, dtype: str | None
) -> tuple[dict[str, Any], dict[str, Recipe]]:
    """Every floating-point tensor of the model in the dtype asked for, and what config.json says of it."""
    made = outcomes(recipes, contents.opened.tensors)
    if dtype is None:
        found = {info.dtype for info in made.values()}
        names = {word: name for name, word in DTYPES.items()}
        if config.get("torch_dtype") is None and len(found) == 1 and found <= names.keys():
            config = {**config, "torch_dtype": names[found.pop()]}
        return config, recipes
    if contents.quantized:
        raise CheckpointError(
            "The checkpoint is quantized; in another dtype it would have to be quantized anew.",
            where=contents.where,
            remedy="Leave --dtype out, or convert the unquantized checkpoint.",
        )
    word = DTYPES[dtype]
    cast = {
        name: Recipe(recipes[name].sources, partial(_cast_one, recipes[name].make, word), info.shape, word)
        for name, info in made.items()
        if info.dtype in _FLOATS and info.dtype != word and name not in contents.unknown
    }
    return {**config, "torch_dtype": dtype}, {**recipes, **cast}


def _cast_one(make: Callable[..., Tensor] | None, word: str, *tensors: Tensor) -> Tensor:
    return (tensors[0] if make is None else make(*tensors)).to(to_torch(word))
