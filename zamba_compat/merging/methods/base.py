"""What every merge method answers: which parameters it has, and what a tensor gets of each parent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from zamba_compat.errors import ConfigError

if TYPE_CHECKING:
    from zamba_compat.merging.settings import Scalar, Setting
    from zamba_compat.merging.sums import Sum

# The value of a parameter for one tensor at one layer, of one model or of all; None where no setting applies.
Look = Callable[[str, "str | None"], "Scalar | None"]


@dataclass(frozen=True)
class Parameter:
    """One parameter, as mergekit declares it.

    Attributes:
        default: what holds where no setting applies; None: it has to be given. Its type is the parameter's.
        each: it has a value for each model beside the base, not one for the tensor.
        least, most: the values that it can have.
    """

    default: float | bool | None
    each: bool = False
    least: float | None = None
    most: float | None = None

    @property
    def is_flag(self) -> bool:
        """Whether it is true or false."""
        return isinstance(self.default, bool)


@dataclass(frozen=True)
class Share:
    """What one tensor gets at one layer.

    Attributes:
        weights: model -> its number: t of the model that is not the base (slerp), or its weight.
        values: parameter of the tensor -> value.
        each: parameter -> model -> value, of those with a value for each model.
        models: that are merged; () stands for those of `weights`.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)
    each: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    models: tuple[str, ...] = ()


@dataclass(frozen=True)
class About:
    """What a method is told of a tensor beside its share.

    Attributes:
        name: of the tensor.
        base: model that it stays where nothing is merged.
        numbers: model -> its place among the parents, which does not depend on where they lie.
        seed: of random methods.
        where: for errors.
    """

    name: str
    base: str
    numbers: Mapping[str, int]
    seed: int
    where: str


@dataclass(frozen=True)
class Method:
    """A merge method. A subclass says how tensors are added (`sum`), and more where this is not enough.

    Attributes:
        title: for the model card.
        url: where it is described.
        takes: its parameters by name.
        main: the parameter that gives each model its number, "weight" or "t" or "scale"; "" for methods without.
        base: "required", "optional", or "" where the base is a model like the others.
        count: how many models beside the base there are, at least and at most; None is any number.
    """

    title: str
    url: str
    takes: Mapping[str, Parameter]
    main: str = ""
    base: str = "required"
    count: tuple[int, int | None] = (1, None)

    sparse: ClassVar[bool] = False  # a model without a number adds nothing, instead of being refused

    @property
    def parameters(self) -> frozenset[str]:
        """The names of its parameters."""
        return frozenset(self.takes)

    def check(self, name: str, setting: Setting, where: str) -> Setting:
        """The setting, flags made true or false.

        Raises:
            ConfigError: values that the parameter cannot have.
        """
        parameter = self.takes[name]
        for value in setting.scalars():
            if isinstance(value, str):
                raise ConfigError(f"{name} is {value!r}.", where=where, remedy="Write a number.")
            low, high = parameter.least, parameter.most
            if (low is not None and value < low) or (high is not None and value > high):
                raise ConfigError(
                    f"{name} is {value}, outside of [{low}, {'...' if high is None else high}].",
                    where=where,
                    remedy="Write a number within it.",
                )
        return setting.as_flags() if parameter.is_flag else setting

    def share(self, look: Look, models: Sequence[str], base: str, own_base: str | None, where: str) -> Share | None:
        """What a tensor gets at one layer; None where no setting applies to it.

        Args:
            look: the parameters.
            models: those of the slice.
            base: whose architecture and untouched tensors the result has.
            own_base: the base of the slice; None where the configuration names none.
            where: the tensor, for errors.

        Raises:
            ConfigError: the slice is none for this method, or parameters are missing.
        """
        origin = self._origin(models, base, own_base, where)
        others = [model for model in models if model != origin]
        least, most = self.count
        if len(others) < least or (most is not None and len(others) > most):
            wanted = f"{least}" if least == most else f"at least {least}" if most is None else f"{least} to {most}"
            beside = " beside the base" if self.base else ""
            raise ConfigError(
                f"A slice has the models {', '.join(models)}; {self.title} takes {wanted}{beside}.",
                where=where,
                remedy="Change the list of models, or take another method.",
            )
        weights = self._numbers(look, others, where) if self.main else {}
        if weights is None:
            return None
        each, values = {}, {}
        for name, parameter in self.takes.items():
            if name == self.main and parameter.each:
                continue
            if parameter.each:
                each[name] = {model: value_of(look(name, model), parameter, name, where) for model in others}
            else:
                found = look(name, None)
                if found is None and parameter.default is None:
                    return None
                values[name] = value_of(found, parameter, name, where)
        kept = [model for model in others if not self.sparse or model in weights]
        return Share(weights, values, each, (*([origin] if origin else []), *kept))

    def _origin(self, models: Sequence[str], base: str, own_base: str | None, where: str) -> str | None:
        """The model that differences are taken from; None where there is none."""
        if not self.base or (own_base is None and self.base == "optional"):
            return None
        if own_base != base or base not in models:
            raise ConfigError(
                f"A slice has the models {', '.join(models)}, and their differences are from the base.",
                where=where,
                remedy=f"Add {base} to the slice, with the layers that it has there.",
            )
        return base

    def _numbers(self, look: Look, others: Sequence[str], where: str) -> dict[str, float] | None:
        parameter = self.takes[self.main]
        if not parameter.each:
            return {}
        found = {model: look(self.main, model) for model in others}
        given = {model: number(value) for model, value in found.items() if value is not None}
        if found and not given and parameter.default is None:
            return None
        missing = [model for model in others if model not in given]
        if missing and parameter.default is not None:
            return {model: given.get(model, float(parameter.default)) for model in others}
        if missing and not self.sparse:
            raise ConfigError(
                f"There is no {self.main} for {', '.join(missing)}.",
                where=where,
                remedy=f"Give every model a {self.main} for the same tensors.",
            )
        return given

    def kept(self, base: str) -> Share | None:
        """The share that leaves the base's tensor as it is; None where no numbers say that."""
        return None

    def sum(self, share: Share, about: About) -> tuple[tuple[str, ...], Sum | None]:
        """The models whose tensors are needed, and how they are added; None copies the only one.

        Raises:
            ConfigError: values that make no tensor.
        """
        raise NotImplementedError


def value_of(found: Scalar | None, parameter: Parameter, name: str, where: str) -> float:
    """A value that was looked up, or the default."""
    if found is not None:
        return number(found)
    if parameter.default is None:
        raise ConfigError(f"There is no {name}.", where=where, remedy=f"Give {name} for the same tensors as the rest.")
    return parameter.default


def number(value: Scalar) -> float:
    """A parameter's value, which `Method.check` has seen."""
    assert not isinstance(value, str)
    return value if isinstance(value, bool) else float(value)
