"""What every merge method answers: which parameters it has, and what a tensor gets of each parent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from zamba_compat.errors import ConfigError

if TYPE_CHECKING:
    from zamba_compat.merging.settings import Scalar, Setting
    from zamba_compat.merging.sums import Sum

# The value of a parameter for one tensor at one layer, of one model or of all; None where no setting applies.
Look = Callable[[str, "str | None"], "Scalar | None"]


@dataclass(frozen=True)
class Share:
    """What one tensor gets at one layer.

    Attributes:
        weights: model -> its number: t of the model that is not the base (slerp), or its weight.
        normalize: divide by the sum of the weights.
        scale: factor of all differences from the base (lambda of task arithmetic).
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    normalize: bool = False
    scale: float = 1.0


class Method(Protocol):
    """A merge method.

    Attributes:
        title: for the model card.
        url: where it is described.
        parameters: the names of its parameters.
    """

    @property
    def title(self) -> str: ...
    @property
    def url(self) -> str: ...
    @property
    def parameters(self) -> frozenset[str]: ...

    def check(self, name: str, setting: Setting, where: str) -> None:
        """Refuse values that the parameter cannot have (ConfigError)."""

    def share(self, look: Look, models: Sequence[str], base: str, own_base: str, where: str) -> Share | None:
        """What a tensor gets at one layer; None where no setting applies to it.

        Args:
            look: the parameters.
            models: those of the slice.
            base: of the merge.
            own_base: of the slice.
            where: the tensor, for errors.

        Raises:
            ConfigError: the slice is none for this method, or parameters are missing.
        """

    def kept(self, base: str) -> Share:
        """The share that leaves the base's tensor as it is."""

    def sum(self, share: Share, base: str, where: str) -> tuple[tuple[str, ...], Sum | None]:
        """The models whose tensors are needed, and how they are added; None copies the only one.

        Raises:
            ConfigError: weights that make no tensor.
        """


def numbers_only(name: str, setting: Setting, where: str) -> None:
    """Refuse texts."""
    for value in setting.scalars():
        if isinstance(value, str):
            raise ConfigError(f"{name} is {value!r}.", where=where, remedy="Write a number.")


def number(value: Scalar) -> float:
    """A parameter's value, which `numbers_only` has seen."""
    assert not isinstance(value, str)
    return float(value)
