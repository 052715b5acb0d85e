"""A parameter's setting: one value, a curve over depth, or values by the tensor's name.

Evaluated as mergekit 0.1.5 does (mergekit/config.py, `evaluate_setting`), step by step and so to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from zamba_compat.checkpoint.reading.strict_json import listed
from zamba_compat.errors import ConfigError

Scalar = float | int | bool | str
_EVERYTHING = "*"


@dataclass(frozen=True)
class Curve:
    """Values at evenly spaced depths of a slice, the first layer's first, the last layer's last."""

    values: tuple[Scalar, ...]

    def at(self, depth: float) -> Scalar:
        """The value at a depth from 0 to 1: numbers are interpolated linearly, anything else taken as it stands."""
        numbers = [value for value in self.values if isinstance(value, (int, float)) and not isinstance(value, bool)]
        scaled = depth * (len(self.values) - 1)
        if len(numbers) < len(self.values):
            return self.values[int(scaled)]
        below = int(scaled)
        above = min(len(numbers) - 1, below + 1)
        part = scaled - below
        return (1 - part) * numbers[below] + part * numbers[above]


@dataclass(frozen=True)
class Condition:
    """A value for the tensors whose name contains `filter`; None and "*" are all of them."""

    filter: str | None
    value: Scalar | Curve

    def applies(self, name: str) -> bool:
        """Whether the tensor `name` is meant."""
        return self.filter is None or self.filter == _EVERYTHING or self.filter in name


@dataclass(frozen=True)
class Setting:
    """The conditions in the order in which they are tried; a bare value is one that applies to everything."""

    conditions: tuple[Condition, ...]

    def evaluate(self, name: str, depth: float) -> Scalar | None:
        """The value for the tensor `name` at `depth` (0 to 1) of its slice; None where no condition applies."""
        for condition in self.conditions:
            if condition.applies(name):
                value = condition.value
                return value.at(depth) if isinstance(value, Curve) else value
        return None

    def scalars(self) -> Iterator[Scalar]:
        """Every value that stands in it."""
        for condition in self.conditions:
            yield from condition.value.values if isinstance(condition.value, Curve) else (condition.value,)

    def as_flags(self) -> Setting:
        """Every value true or false; of a list the one at or before a depth is taken, as there is none between them."""

        def flags(value: Scalar | Curve) -> Scalar | Curve:
            return Curve(tuple(map(bool, value.values))) if isinstance(value, Curve) else bool(value)

        return Setting(tuple(Condition(one.filter, flags(one.value)) for one in self.conditions))

    def filters(self) -> Iterator[str]:
        """Every filter that names something."""
        for condition in self.conditions:
            if condition.filter is not None and condition.filter != _EVERYTHING:
                yield condition.filter


def parse_setting(value: Any, *, where: str) -> Setting:
    """A setting from YAML: a value, a list of values, or (a list of) {filter, value}.

    Raises:
        ConfigError: anything else, an empty list, a number that is not finite.
    """
    conditions = value if isinstance(value, list) else [value]
    if any(isinstance(condition, Mapping) for condition in conditions):
        return Setting(tuple(_condition(condition, where) for condition in conditions))
    return Setting((Condition(None, _value(value, where)),))


def _condition(value: Any, where: str) -> Condition:
    if not isinstance(value, Mapping) or "value" not in value or not set(value) <= {"filter", "value"}:
        raise _refuse(f"{listed([str(value)])} is not a value with or without a filter.", where)
    name = value.get("filter")
    if name is not None and (not isinstance(name, str) or not name):
        raise _refuse(f"The filter {listed([str(name)])} is no part of a name.", where)
    return Condition(name, _value(value["value"], where))


def _value(value: Any, where: str) -> Scalar | Curve:
    if isinstance(value, list):
        if not value:
            raise _refuse("A list without values says nothing.", where)
        return Curve(tuple(_scalar(item, where) for item in value))
    return _scalar(value, where)


def _scalar(value: Any, where: str) -> Scalar:
    if isinstance(value, str):
        try:
            value = float(value)  # such as 1e-3, which YAML 1.1 takes for text
        except ValueError:
            return str(value)
    if not isinstance(value, (bool, int, float)):
        raise _refuse(f"{listed([str(value)])} is no value of a parameter.", where)
    if not math.isfinite(value):
        raise _refuse(f"{value} is no finite number.", where)
    return value


def _refuse(what: str, where: str) -> ConfigError:
    return ConfigError(what, where=where, remedy="Write a number, a list of numbers, or filters with values.")
