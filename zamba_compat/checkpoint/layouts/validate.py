"""Names, shapes and dtypes of a checkpoint against its config, from headers alone."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from zamba_compat.errors import CheckpointError, MissingTensorError
from zamba_compat.layout.quant_state_names import BITSANDBYTES, base_of, format_of, is_weight
from zamba_compat.layout.sharing import SharingMap

from .other_formats import quantized_weights
from .shapes import Shape, head_shape, is_head

if TYPE_CHECKING:
    from zamba_compat.checkpoint.reading.opening import TensorInfo

_MOST_NAMED = 12


def quantized_names(names: Iterable[str]) -> list[str]:
    """The names of parts that only a quantized checkpoint has."""
    return [name for name in names if base_of(name) != name]


def check_names(
    names: Collection[str],
    sharing: SharingMap,
    expected: Mapping[str, Shape],
    *,
    where: str,
    allow_unknown: bool,
) -> tuple[str, ...]:
    """The names that are no part of the model.

    Args:
        names: every stored name.
        sharing: the sharing map of the config.
        expected: the tensors of the hub layout.
        where: what to call the checkpoint in errors.
        allow_unknown: return them instead of refusing.

    Raises:
        CheckpointError: there are such names.
        MissingTensorError: a tensor that belongs to one layer alone is not stored.
    """
    homes = {name: sharing.canonical_key(base_of(name)) for name in names}
    unknown = tuple(name for name, home in homes.items() if home not in expected and not is_head(home))
    if unknown and not allow_unknown:
        raise CheckpointError(
            f"{len(unknown)} tensors are no part of the model: "
            f"{_listed([_with_lookalike(name, expected) for name in unknown])}.",
            where=where,
            remedy="Correct the names or the config, or copy them unchanged with --allow-unknown.",
        )
    held = {base_of(name) for name in names if is_weight(name)}
    own = [key for key in expected if sharing.parse(key) is None and key not in held]
    if own:
        raise MissingTensorError(
            f"{len(own)} tensors are not stored: {_listed(own)}.",
            where=where,
            remedy="The checkpoint is incomplete: download or convert it again.",
        )
    return unknown


def check_tensors(
    tensors: Mapping[str, TensorInfo],
    sharing: SharingMap,
    expected: Mapping[str, Shape],
    config: Mapping[str, Any],
    unknown: Collection[str],
    *,
    where: str,
    assumed: Collection[str],
) -> None:
    """Every stored shape is the config's, and copies of one tensor agree in dtype.

    Args:
        tensors: what is stored.
        sharing: the sharing map of the config.
        expected: the tensors of the hub layout.
        config: as `shapes.fill_in` returns it.
        unknown: names to leave out.
        where: what to call the checkpoint in errors.
        assumed: config keys whose value is a default that the shapes have to prove.

    Raises:
        CheckpointError: they do not.
    """
    kinds = {weight: format_of(parts) for weight, parts in quantized_weights(tensors, sharing).items()}
    dtypes: dict[str, TensorInfo] = {}
    wrong = []
    for name, info in tensors.items():
        if name in unknown or base_of(name) != name:
            continue
        home = sharing.canonical_key(name)
        shape = head_shape(name, config) if is_head(name) else expected[home]
        packed = home in kinds and shape is not None and _is_packed(info, shape, kinds[home])
        if shape is not None and info.shape != shape and not packed:
            wrong.append(f"{name} is {list(info.shape)}, the config makes it {list(shape)}")
        first = dtypes.setdefault(home, info)
        if first.dtype != info.dtype or first.shape != info.shape:
            raise CheckpointError(
                f"is {info.dtype} {list(info.shape)} but its copy {first.name} is {first.dtype} {list(first.shape)}.",
                where=f"{where}: {name}",
                remedy="Copies of a shared tensor must agree in dtype and shape; remove the wrong one.",
            )
    if wrong:
        guess = f" Missing there and taken from the defaults: {', '.join(assumed)}." if assumed else ""
        raise CheckpointError(
            f"{len(wrong)} tensors have another shape than the config says: {_listed(wrong, '; ')}.",
            where=where,
            remedy=f"Use the config.json that belongs to these tensors.{guess}",
        )


def _is_packed(info: TensorInfo, shape: Shape, kind: str) -> bool:
    """Whether a quantized weight may have another shape: 4 bits in any dtype, or integers in its format's own order."""
    count = math.prod(shape)
    if 2 * info.nbytes == count + count % 2:
        return True
    return kind not in BITSANDBYTES and info.dtype[0] in "UI" and count % max(math.prod(info.shape), 1) == 0


def _with_lookalike(name: str, expected: Mapping[str, Shape]) -> str:
    plain = unicodedata.normalize("NFKC", name)
    if name.isascii():
        return name
    hint = f" (looks like {plain})" if plain != name and plain in expected else ""
    return name.encode("ascii", "backslashreplace").decode() + hint


def _listed(names: Iterable[str], between: str = ", ") -> str:
    names = list(names)
    more = f"{between}and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return between.join(names[:_MOST_NAMED]) + more
