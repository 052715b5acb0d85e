"""Task arithmetic: base + lambda * sum of w_i s(x_i - base), s sparsifies, perhaps only where the signs agree.

The sum is divided by that of the weights if normalize is true; with consensus of signs, by those of the models that
take part in an element. `rescale` gives what s leaves the l1 norm that the difference had. The members of the family
differ in s (`Sparsifier`), in consensus and in their defaults.

    method                          s keeps                                       signs agree
    task_arithmetic                 everything                                    no
    ties                            the largest                                   yes
    dare_linear, dare_ties          some at random                                no, yes
    della_linear, della             some at random, large ones rather             no, yes
    breadcrumbs, breadcrumbs_ties   neither the smallest nor the very largest     no, yes

Source: Ilharco et al., "Editing models with task arithmetic", arXiv 2212.04089; mergekit's sparsify.py and
merge_methods/generalized_task_arithmetic.py, 0.1.5, which add in the tensors' own dtype where this adds in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from zamba_compat.merging.streamed import Cut, keep
from zamba_compat.merging.sums import Run, Sum

from .base import About, Method, Parameter, Share
from .linear import weighted

if TYPE_CHECKING:
    from torch import Tensor

_NO_SUM = 1e-8  # mergekit's: such a sum of weights divides nothing
_NO_NORM = 1e-7  # mergekit's: such a norm is not rescaled

# (piece, the difference there [rows, width]) -> which elements stay.
Mask = Callable[[int, "Tensor"], "Tensor"]


class Sparsifier(Protocol):
    """Chooses the elements of one model's difference from the base that stay."""

    def width(self, shape: Sequence[int]) -> int:
        """Of the rows that must not be cut."""

    def mask(self, cut: Cut) -> Mask:
        """How to choose.

        Args:
            cut: the base's tensor and the model's.
        """


@dataclass(frozen=True)
class Consensus:
    """A sum of differences, each sparsified and weighted.

    Attributes:
        weights, sparsifiers: per model; None keeps everything.
        agree: an element counts only where its sign is that of the weighted sum, 0 counted as positive.
        normalize, rescale, scale: see the module; scale is lambda.
    """

    weights: tuple[float, ...]
    sparsifiers: tuple[Sparsifier | None, ...]
    agree: bool
    normalize: bool
    rescale: bool
    scale: float

    def pieces(self, tensors: Sequence[Tensor], run: Run) -> Iterator[Tensor]:
        import torch

        widths = {one.width(tensors[0].shape) for one in self.sparsifiers if one is not None}
        cut = Cut.of(tensors, run, max(widths, default=1))
        pairs = [cut.only(0, number) for number in range(1, len(tensors))]
        masks = [None if one is None else one.mask(pair) for one, pair in zip(self.sparsifiers, pairs, strict=True)]
        factors: list[float | None] = [None] * len(pairs)
        if self.rescale:
            for place, (mask, pair) in enumerate(zip(masks, pairs, strict=True)):
                if mask is not None:
                    factors[place], masks[place] = rescaled(mask, pair)
        weights = torch.tensor(self.weights).reshape(-1, 1, 1)
        total = float(weights.sum())

        def one(number: int) -> Tensor:
            base, deltas = cut.deltas(number)
            for delta, mask, factor in zip(deltas, masks, factors, strict=True):
                if mask is not None:
                    keep(delta, mask(number, delta))
                if factor is not None:
                    delta.mul_(factor)
            deltas.mul_(weights)
            if self.agree:
                mixed = agreed(deltas, weights if self.normalize else None)
            else:
                mixed = added(deltas)
                if self.normalize and abs(total) >= _NO_SUM:
                    mixed /= total
            return base.add_(mixed if self.scale == 1 else mixed.mul_(self.scale))

        yield from cut.write(one)


def rescaled(mask: Mask, pair: Cut) -> tuple[float | None, Mask]:
    """What gives a difference the l1 norm back that it had before a mask, None for nothing; and the mask, remembered.

    It is kept as bits: to draw or to sort again costs more than all the rest.
    """
    import numpy as np
    import torch

    def norms(number: int) -> tuple[float, float, Any]:
        delta = pair.deltas(number)[1][0]
        chosen = mask(number, delta)
        before = float(delta.abs().sum())
        return before, float(keep(delta, chosen).abs_().sum()), np.packbits(chosen.numpy())

    befores, afters, bits = zip(*pair.each(norms), strict=True)

    def remembered(number: int, delta: Tensor) -> Tensor:
        found = np.unpackbits(bits[number], count=delta.numel()).view(np.bool_)
        return torch.from_numpy(found.reshape(delta.shape))

    before, after = sum(befores), sum(afters)
    return (None if min(before, after) < _NO_NORM else before / after), remembered


def agreed(deltas: Tensor, weights: Tensor | None) -> Tensor:
    """The sum of weighted differences [k, rows, width], which are lost, that have the sign of their sum; 0 is positive.

    Args:
        weights: [k, 1, 1], to divide by the sum of those that take part in an element, where it is not 0.

    Returns:
        [rows, width].
    """
    import numpy as np
    import torch

    sign = torch.copysign(torch.ones(()), added(deltas) + 0.0)  # -0 becomes 0
    along = deltas.mul_(sign).clamp_(min=0)  # the size of those that have it; NaN stays NaN
    total = added(along) * sign
    if weights is not None:
        divisor = added(along.sign_().mul_(weights))
        own = divisor.numpy()
        np.add(own, own == 0, out=own)  # no branches: half of the elements may be 0
        total /= divisor
    return total


def added(tensors: Tensor) -> Tensor:
    """The sum of [k, rows, width] over k; for one, a view of it."""
    return tensors[0] if len(tensors) == 1 else tensors.sum(0)


FLAGS = {"int8_mask": Parameter(False), "lambda": Parameter(1.0), "weight": Parameter(None, each=True)}


@dataclass(frozen=True)
class TaskArithmetic(Method):
    """A member of the family.

    Attributes:
        agree: with consensus of signs.
        own: its parameters beside those that all have.
        normalize, rescale: the defaults.
    """

    title: str = "Task Arithmetic"
    url: str = "https://arxiv.org/abs/2212.04089"
    takes: Mapping[str, Parameter] = field(init=False)
    main: str = "weight"
    count: tuple[int, int | None] = (0, None)
    agree: bool = False
    normalize: bool = False
    rescale: bool = False
    own: Mapping[str, Parameter] = field(default_factory=dict)

    sparse: ClassVar[bool] = True

    def __post_init__(self) -> None:
        flags = {"normalize": Parameter(self.normalize), "rescale": Parameter(self.rescale)}
        takes = {**FLAGS, **flags, "density": Parameter(1.0, each=True, least=0), **self.own}
        object.__setattr__(self, "takes", takes)

    def kept(self, base: str) -> Share:
        return Share()

    def sum(self, share: Share, about: About) -> tuple[tuple[str, ...], Sum | None]:
        used = {model: weight for model, weight in share.weights.items() if weight}
        total, normalize = sum(share.weights.values()), bool(share.values.get("normalize", False))
        scale = share.values.get("lambda", 1.0)
        sparsifiers = tuple(self._sparsifier(model, share, about) for model in used)
        if not used or not scale:
            return (about.base,), None
        if not self.agree and all(one is None for one in sparsifiers):
            divisor = total if normalize and abs(total) >= _NO_SUM else 1.0
            others = {model: scale * weight / divisor for model, weight in used.items()}
            return weighted({about.base: 1.0 - sum(others.values()), **others})
        rescale = bool(share.values["rescale"])
        made = Consensus(tuple(used.values()), sparsifiers, self.agree, normalize, rescale, scale)
        return (about.base, *used), made

    def _sparsifier(self, model: str, share: Share, about: About) -> Sparsifier | None:
        if share.each["density"][model] >= 1:
            return None
        values = {name: found[model] for name, found in share.each.items()}
        return self.sparsifier(values, f"{about.seed}/{about.name}/{about.numbers[model]}", about.where)

    def sparsifier(self, values: Mapping[str, float], key: str, where: str) -> Sparsifier | None:
        """What chooses the elements that stay, of a density below 1; None where all do.

        Args:
            values: density, gamma, epsilon.
            key: of what is drawn for this tensor of this model.

        Raises:
            ConfigError: values that do not go together.
        """
        return None


METHOD = TaskArithmetic()
