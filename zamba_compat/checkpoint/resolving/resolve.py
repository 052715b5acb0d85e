"""What becomes of copies of one tensor that differ.

| choice | the shared tensor | what is lost |
|---|---|---|
| error | nothing is written | |
| first | the copy of the first layer | each later position's difference |
| mean | the arithmetic mean | each position's difference |
| karcher | the mean on the sphere, with the mean norm | the same, the norm kept |
| untie | each position keeps its own | nothing; more memory |
| absorb | the mean, each position's difference in its own adapter | what the rank does not hold |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from zamba_compat.checkpoint.progress import Progress, counting
from zamba_compat.checkpoint.recipe import Recipe
from zamba_compat.errors import CheckpointError, DivergentCopiesError
from zamba_compat.layout.copies import combine, mean, norm, relative_distance
from zamba_compat.layout.plan import Divergence, Plan

from .compare import compare, table
from .lowrank import fit_adapter, pad
from .sphere import karcher_weights

if TYPE_CHECKING:
    from torch import Tensor

    from zamba_compat.checkpoint.layouts.contents import Contents

CHOICES = ("error", "first", "mean", "karcher", "untie", "absorb")
_ADAPTERS = {
    "feed_forward.gate_up_proj.weight": "feed_forward.gate_up_proj_adapter_list",
    **{f"self_attn.{p}_proj.weight": f"self_attn.linear_{p}_adapter_list" for p in "qkv"},
}


@dataclass(frozen=True)
class Residual:
    """What tying again leaves of one tensor.

    Attributes:
        key: the canonical name.
        choice: what was done: "first", "mean", "karcher", "untie" or "absorb". "mean" where there is nothing better.
        left: stored name -> ||what the position had - what it gets|| / ||its copy||, Frobenius norms, after rounding;
            for "absorb" what it has is the weight plus the product of its adapter.
    """

    key: str
    choice: str
    left: Mapping[str, float]

    @property
    def worst(self) -> float:
        return max(self.left.values(), default=0.0)


@dataclass(frozen=True)
class Resolution:
    """The hub layout of a checkpoint, its copies made one.

    Attributes:
        contents: the checkpoint.
        divergences: shared tensors whose copies differ.
        plan: which stored name fills which parameter; untied for "untie".
        recipes: parameter name -> recipe, in terms of what is stored, for every parameter.
        config: entries of the config that change.
        residuals: one per tensor whose copies differ.
        notes: what a person should hear.
    """

    contents: Contents
    divergences: tuple[Divergence, ...]
    plan: Plan
    recipes: Mapping[str, Recipe]
    config: Mapping[str, Any] = field(default_factory=dict)
    residuals: tuple[Residual, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def hub(self) -> dict[str, Recipe]:
        """`recipes`, and what is copied beside the model."""
        beside = (*self.contents.unknown, *self.contents.unused_adapters)
        return {**self.recipes, **{name: self.contents.recipes[name] for name in beside}}

    @property
    def whole_config(self) -> dict[str, Any]:
        """Of the hub layout, in the classic dialect."""
        return {**self.contents.config, **self.config}


def resolve(
    contents: Contents, choice: str, *, adapter_rank: int | None = None, progress: Progress | None = None
) -> Resolution:
    """Compare the copies of every shared tensor, and make them one.

    Args:
        contents: the checkpoint.
        choice: one of `CHOICES`.
        adapter_rank: of the adapters after "absorb"; None keeps adapter_rank.
        progress: makes what shows progress, in bytes.

    Raises:
        DivergentCopiesError: copies differ and the choice is "error", or they are quantized and would be averaged.
        CheckpointError: a choice or rank that this model does not allow.
    """
    divergences, notes = compare(contents, progress)
    _check(contents, divergences, choice, adapter_rank)
    plan = contents.plan
    recipes = {name: contents.recipes[stored] for name, stored in plan.sources.items()}
    config: dict[str, Any] = {}
    if choice == "untie" and divergences:
        if apart := [d for d in divergences if d.key in plan.groups]:
            plan = plan.untied()
            recipes = {name: contents.recipes[stored] for name, stored in plan.sources.items()}
            config["num_mem_blocks"] = plan.sharing.num_blocks
        if len(apart) < len(divergences) and contents.tied_head is not None:
            recipes[contents.tied_head] = contents.recipes[contents.tied_head]
            config["tie_word_embeddings"] = False
        residuals = [Residual(d.key, "untie", dict.fromkeys(d.copies, 0.0)) for d in divergences]
        return Resolution(contents, tuple(divergences), plan, recipes, config, tuple(residuals), notes)
    residuals = []
    with counting(progress, "tying", sum(map(contents.nbytes, divergences))) as update:
        if choice == "absorb":
            present = int(contents.config["adapter_rank"])
            rank = adapter_rank or present
            residuals = _absorb(contents, divergences, recipes, rank, update)
            config = {} if rank == present else {"adapter_rank": rank}
        else:
            for divergence in divergences:
                residual, recipes[divergence.key] = _tie(contents, divergence, choice)
                residuals.append(residual)
                update(contents.nbytes(divergence))
    notes = (*notes, *_fallbacks(choice, residuals))
    return Resolution(contents, tuple(divergences), plan, recipes, config, tuple(residuals), notes)


def _check(contents: Contents, divergences: Sequence[Divergence], choice: str, adapter_rank: int | None) -> None:
    if choice not in CHOICES:
        raise CheckpointError(f"{choice!r} is no way to resolve copies.", remedy=f"Use one of {', '.join(CHOICES)}.")
    if divergences and choice == "error":
        raise DivergentCopiesError(
            f"{len(divergences)} shared tensors are stored in copies that differ. Largest relative distance to the "
            f"first copy, by the first layer of each block:\n{table(divergences, contents.sharing)}\n",
            where=contents.where,
            remedy="Choose: --resolve untie keeps every copy exactly; absorb ties them and keeps the difference "
            "in the adapters as far as these hold it; mean, karcher and first tie them and lose it.",
        )
    if divergences and contents.quantized and choice in ("mean", "karcher", "absorb"):
        raise DivergentCopiesError(
            f"{len(divergences)} shared tensors are quantized in copies that differ; these have no mean.",
            where=contents.where,
            remedy="Use --resolve untie or first, or convert the unquantized checkpoint.",
        )
    zamba1 = contents.sharing.model_type == "zamba"
    if zamba1 and (
        choice == "absorb" or (choice == "untie" and any(d.key in contents.plan.groups for d in divergences))
    ):
        raise CheckpointError(
            f"Zamba (v1) has one block and no adapters, so nothing to {choice}.",
            where=contents.where,
            remedy="Use --resolve mean, karcher or first.",
        )
    if adapter_rank is None:
        return
    present = contents.config.get("adapter_rank")
    if choice != "absorb" or contents.quantized:
        raise CheckpointError(
            "Only --resolve absorb of an unquantized checkpoint changes the adapters' rank.",
            where=contents.where,
            remedy="Leave --adapter-rank out.",
        )
    if isinstance(adapter_rank, bool) or not isinstance(adapter_rank, int) or adapter_rank < int(present or 1):
        raise CheckpointError(
            f"The adapters have rank {present}, which cannot become {adapter_rank}.",
            where=contents.where,
            remedy="Raise it, or leave --adapter-rank out.",
        )


def _tie(contents: Contents, divergence: Divergence, choice: str) -> tuple[Residual, Recipe]:
    """One recipe for all copies, and what it leaves of each."""
    copies = [contents.read(name) for name in divergence.copies]
    made: Callable[..., Tensor] = _mean
    weights = karcher_weights(copies) if choice == "karcher" else None
    if weights is not None:
        made = partial(_combined, weights)
    elif choice == "karcher":
        choice = "mean"
    if choice == "first":
        first = contents.plan.sources[divergence.key]
        recipe, tied = contents.recipes[first], contents.read(first)
    else:
        sources = tuple(contents.recipes[name].sources[0] for name in divergence.copies)
        recipe = Recipe(sources, made, tuple(copies[0].shape), contents.tensors[divergence.copies[0]].dtype)
        tied = made(*copies)
    left = {name: relative_distance(copy, tied) for name, copy in zip(divergence.copies, copies, strict=True)}
    return Residual(divergence.key, choice, left), recipe


def _mean(*copies: Tensor) -> Tensor:
    return mean(copies)


def _combined(weights: Sequence[float], *copies: Tensor) -> Tensor:
    return combine(copies, weights)


def _fallbacks(choice: str, residuals: Iterable[Residual]) -> tuple[str, ...]:
    other = [residual.key for residual in residuals if residual.choice != choice]
    if choice != "karcher" or not other:
        return ()
    return (f"no mean on the sphere, so the plain mean instead: {', '.join(other)}",)


def _absorb(
    contents: Contents,
    divergences: Sequence[Divergence],
    recipes: dict[str, Recipe],
    rank: int,
    done: Callable[[int], object],
) -> list[Residual]:
    """Changes `recipes`."""
    plan, sharing, read = contents.plan, contents.sharing, contents.read
    residuals, computed = [], set()
    for divergence in divergences:
        residual, recipes[divergence.key] = _tie(contents, divergence, "mean")
        done(contents.nbytes(divergence))
        shared = sharing.parse(divergence.key)
        adapters = None if shared is None else _ADAPTERS.get(shared.suffix)
        if shared is None or adapters is None or (not sharing.attention_adapters and "self_attn" in adapters):
            residuals.append(residual)
            continue
        tied = mean([read(name) for name in divergence.copies])
        stem = divergence.key.removesuffix(shared.suffix)
        left = {}
        for position in sharing.positions:
            if position.canonical_layer != shared.layer:
                continue
            halves = [f"{stem}{adapters}.{position.index}.{half}.weight" for half in (0, 1)]
            name = plan.groups[divergence.key].get(position.layer, plan.sources[divergence.key])
            own, (down, up) = read(name), (read(plan.sources[half]) for half in halves)
            new_down, new_up, apart = fit_adapter(tied, own, down, up, rank)
            scale = norm(own)
            left[sharing.at_layer(divergence.key, position.layer)] = apart / scale if scale else float(apart > 0)
            for half, tensor in zip(halves, (new_down, new_up), strict=True):
                dtype = contents.tensors[plan.sources[half]].dtype
                recipes[half] = Recipe((), partial(_computed, tensor), tuple(tensor.shape), dtype)
                computed.add(half)
        residuals.append(Residual(divergence.key, "absorb", left))
    if rank == int(contents.config["adapter_rank"]):
        return residuals
    for key in plan.groups:
        shared = sharing.parse(key)
        if shared is not None and shared.adapter is not None and key not in computed:
            number = int(key.removesuffix(".weight")[-1])
            info = contents.tensors[plan.sources[key]]
            shape = (rank, info.shape[1]) if number == 0 else (info.shape[0], rank)
            recipes[key] = Recipe(recipes[key].sources, partial(_padded, number, rank), shape, info.dtype)
    return residuals


def _computed(tensor: Tensor) -> Tensor:
    return tensor


def _padded(number: int, rank: int, half: Tensor) -> Tensor:
    return pad(half, number, rank)
