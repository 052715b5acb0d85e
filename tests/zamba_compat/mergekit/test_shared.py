"""The tasks planned for the layers of one block become one; what has no mean is refused."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from zamba_compat.errors import ConfigError
from zamba_compat.merging.mergekit.shared import folded


class Task(SimpleNamespace):
    """Of mergekit's ExecuteMergeMethodTask what `folded` reads; the real one is used in tests/patches/mergekit."""

    def model_copy(self, update: dict[str, Any]) -> Task:
        return Task(**{**vars(self), **update})


@pytest.fixture(autouse=True)
def plain_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    package, module = ModuleType("mergekit"), ModuleType("mergekit.common")
    module.ImmutableMap = dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mergekit", package)
    monkeypatch.setitem(sys.modules, "mergekit.common", module)


def task(parameters: dict[str, Any], models: tuple[str, ...] = ("base", "other"), method: str = "slerp") -> Task:
    inputs = {model: {} for model in models}
    return Task(
        model_order=models, method_name=method, base_model="base", parameters=parameters, input_parameters=inputs
    )


def fold(*tasks: Task) -> Task:
    weight = SimpleNamespace(name="model.layers.6.shared_transformer.x")
    ((found, merged),) = folded([(weight, one) for one in tasks])
    assert found is weight
    return merged


def test_numbers_have_their_mean() -> None:
    assert fold(task({"t": 0.2}), task({"t": 0.4}), task({"t": 0.9})).parameters == {"t": 0.5}
    same = task({"t": 0.1, "flag": True})
    assert fold(same, task({"t": 0.1, "flag": True})) is same


def test_a_layer_that_keeps_one_model_counts() -> None:
    kept = task({"scale": 1.0}, ("base",), "passthrough")
    assert fold(task({"t": 0.6}), kept).parameters == {"t": 0.3}
    assert fold(task({"t": 0.6}), task({"scale": 1.0}, ("other",), "passthrough")).parameters == {"t": 0.8}
    assert fold(kept, task({"scale": 1.0}, ("base",), "passthrough")) is kept


@pytest.mark.parametrize(
    "tasks",
    [
        (task({"flag": True}), task({"flag": False})),
        (task({"word": "a"}), task({"word": "b"})),
        (task({"t": 0.1}), task({"t": 0.1}, ("base", "third"))),
        (task({"t": 0.1}), task({"t": 0.2}, method="nearswap")),
        (task({"scale": 1.0}, ("base",), "passthrough"), task({"scale": 1.0}, ("other",), "passthrough")),
        (task({}, method="linear"), task({"scale": 1.0}, ("base",), "passthrough")),
    ],
)
def test_what_has_no_mean_is_refused(tasks: tuple[Task, ...]) -> None:
    with pytest.raises(ConfigError, match="shared_transformer"):
        fold(*tasks)
