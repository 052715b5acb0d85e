"""What is taken as a merge's configuration."""

from __future__ import annotations

from typing import Any

import pytest

from zamba_compat.errors import ConfigError
from zamba_compat.merging.reading import read_merge_config


def words(layer_range: Any) -> dict[str, Any]:
    sources = [{"model": name, "layer_range": layer_range} for name in ("one", "other")]
    return {"merge_method": "slerp", "base_model": "one", "slices": [{"sources": sources}], "parameters": {"t": 0.5}}


@pytest.mark.parametrize("given", [[0, 11], ["0", "11"], [0, "11"]])
def test_layer_ranges(given: list[Any]) -> None:
    (part,) = read_merge_config(words(given)).slices
    assert [source.layer_range for source in part.sources] == [(0, 11)] * 2


@pytest.mark.parametrize(
    "given", [None, [], [3], [1, 2, 3], [2, 2], [-1, 2], ["x", 2], [True, 2], [0, 1.5], ["²", 3], ["9" * 9, 3], "01"]
)
def test_no_layer_ranges(given: Any) -> None:
    with pytest.raises(ConfigError, match="is no range of layers"):
        read_merge_config(words(given))
