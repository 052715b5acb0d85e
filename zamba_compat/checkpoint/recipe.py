"""How one tensor of a converted checkpoint is made from the stored ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Recipe:
    """`make(*[read(name) for name in sources])`, or the single source unchanged when make is None.

    Attributes:
        sources: stored names, in the order `make` takes them.
        make: a pure function of the source tensors; None copies the only source bit for bit.
        shape: of the result; None means that of the single source.
        dtype: of the result, in the words of safetensors ("BF16", "F32"); None means that of the single source.
        pieces: the same tensor as `make` gives, flat and piece by piece, so that it need not be held whole; None where
            there is only `make`. A call may begin to compute; it comes, and the first piece is taken, while those of
            the tensors before it are.
    """

    sources: tuple[str, ...]
    make: Callable[..., Tensor] | None = None
    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    pieces: Callable[..., Iterator[Tensor]] | None = None

    def __post_init__(self) -> None:
        if self.make is None and len(self.sources) != 1:
            raise ValueError(f"without a function to combine them, {len(self.sources)} sources make no tensor")

    def made(self, read: Callable[[str], Tensor]) -> Tensor:
        """The tensor, its sources read by `read`."""
        tensors = [read(source) for source in self.sources]
        return tensors[0] if self.make is None else self.make(*tensors)


def compose(outer: Recipe, inner: Mapping[str, Recipe]) -> Recipe:
    """A recipe whose sources are names in `inner`, as one whose sources are those of `inner`."""
    parts = [inner[name] for name in outer.sources]
    if outer.make is None:
        (part,) = parts
        return Recipe(part.sources, part.make, outer.shape or part.shape, outer.dtype or part.dtype)
    make = outer.make
    if all(part.make is None for part in parts):
        return Recipe(tuple(part.sources[0] for part in parts), make, outer.shape, outer.dtype)

    def both(*tensors: Tensor) -> Tensor:
        made, start = [], 0
        for part in parts:
            own = tensors[start : start + len(part.sources)]
            made.append(own[0] if part.make is None else part.make(*own))
            start += len(own)
        return make(*made)

    return Recipe(tuple(name for part in parts for name in part.sources), both, outer.shape, outer.dtype)
