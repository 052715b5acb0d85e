"""What an extraction is asked for, and what it did."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zamba_compat.checkpoint.dtypes import DTYPES
from zamba_compat.checkpoint.resolving.resolve import CHOICES
from zamba_compat.errors import CheckpointError


@dataclass(frozen=True)
class ExtractOptions:
    """How to extract.

    Attributes:
        rank: of each pair of factors; a matrix with a shorter side gets that side's length.
        target_modules: the linear modules to adapt, or parts that hold them, by one word of their names ("in_proj",
            "self_attn"); () stands for all that may be adapted.
        modules_to_save: modules of which the tuned weights go into the adapter whole, by the end of their names, as
            PEFT takes them.
        include, exclude: regular expressions that are searched in a module's name; it is adapted where one of
            `include` is found (or there is none) and none of `exclude`.
        per_position: a pair of factors for every use of a shared block, where the tuned copies may differ.
        resolve: what becomes of copies of a shared tensor that differ, see `checkpoint.resolving.resolve`.
        dtype: "float32", "bfloat16" or "float16" of the factors; None is the base's.
        dry_run: check and decide, write nothing.
        overwrite: replace a destination that is not empty.
        allow_unknown: leave tensors aside that are no part of the model.
        allow_pickle: read .bin and .pt files, with torch.load(weights_only=True).
    """

    rank: int
    target_modules: tuple[str, ...] = ()
    modules_to_save: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    per_position: bool = False
    resolve: str = "error"
    dtype: str | None = None
    dry_run: bool = False
    overwrite: bool = False
    allow_unknown: bool = False
    allow_pickle: bool = False

    def __post_init__(self) -> None:
        if type(self.rank) is not int or self.rank < 1:
            raise CheckpointError(f"{self.rank!r} is no rank.", remedy="Give a positive integer, such as 64.")
        for value, known, name in (
            (self.resolve, CHOICES, "way to resolve copies"),
            (self.dtype or "float32", tuple(DTYPES), "dtype"),
        ):
            if value not in known:
                raise CheckpointError(f"{value!r} is no {name}.", remedy=f"Use one of {', '.join(known)}.")
        for pattern in (*self.include, *self.exclude):
            try:
                re.compile(pattern)
            except re.error as error:
                raise CheckpointError(
                    f"{pattern!r} is no regular expression: {error}.", remedy="Escape what is meant literally."
                ) from error
        if self.per_position and self.resolve not in ("error", "untie"):
            raise CheckpointError(
                "Copies that differ are either tied again or adapted one by one.",
                remedy="Leave out --per-position or --resolve.",
            )


@dataclass(frozen=True)
class Energy:
    """Sums of squares of the difference between the checkpoints, each shared tensor counted once.

    Attributes:
        total: all of it.
        adapted: what the factors hold, before they are rounded.
        saved: of modules that are saved whole.
        left: tensors that differ and that the adapter does not carry.
    """

    total: float
    adapted: float
    saved: float
    left: int

    @property
    def kept(self) -> float | None:
        """The share that the adapter carries; None where nothing differs."""
        return (self.adapted + self.saved) / self.total if self.total else None

    @property
    def share(self) -> str:
        """`kept` in words."""
        return "-" if self.kept is None else f"{100 * self.kept:.2f}%"


@dataclass(frozen=True)
class ExtractReport:
    """What an extraction did, or would do.

    Attributes:
        base, tuned, destination: as given.
        layouts: of both.
        options: what was asked for.
        written: False after a dry run.
        matrices: that are adapted.
        tensors, bytes: in the adapter; after a dry run as if all matrices differed.
        target_modules, modules_to_save, ranks: as in adapter_config.json.
        components: part of the model -> energy; empty after a dry run.
        total: of all parts; None after a dry run.
        left: tensors that differ and that the adapter does not carry.
        words: what to add to modules_to_save to carry them.
        peak_memory: estimate of the anonymous memory needed beyond the libraries', bytes; mapped files are not in it.
        warnings: what a person should hear.
    """

    base: str
    tuned: str
    destination: str
    layouts: tuple[str, str]
    options: ExtractOptions
    written: bool
    matrices: int
    tensors: int
    bytes: int
    target_modules: tuple[str, ...]
    modules_to_save: tuple[str, ...]
    ranks: Mapping[str, int]
    components: Mapping[str, Energy]
    total: Energy | None
    left: tuple[str, ...]
    words: tuple[str, ...]
    peak_memory: int
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = dataclasses.asdict(self)
        for name, energy in self.components.items():
            found["components"][name]["kept"] = energy.kept
        if self.total is not None:
            found["total"]["kept"] = self.total.kept
        return found
