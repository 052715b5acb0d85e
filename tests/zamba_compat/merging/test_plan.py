"""What parents have to agree on, and what is said where they do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from support.merges import parents, read, slerp_of, write
from zamba_compat.errors import CheckpointError, ConfigError
from zamba_compat.merge import merge


def test_other_heads_are_refused(tmp_path: Path) -> None:
    """Their tensors have the same shapes."""
    config, base, other = parents()
    fewer = {"num_attention_heads": 2, "num_key_value_heads": 2}
    first, second = write(tmp_path, config, base, other, changes=({}, fewer))
    with pytest.raises(CheckpointError, match="num_attention_heads 2 instead of"):
        merge(slerp_of(first, second, config["num_hidden_layers"], 0.5), tmp_path / "out")


def test_other_arithmetic_is_said(tmp_path: Path) -> None:
    config, base, other = parents()
    rope: list[dict[str, Any]] = [{"use_mem_rope": True, "rope_theta": theta} for theta in (10000, 50000)]
    first, second = write(tmp_path, config, base, other, changes=rope)
    report = merge(slerp_of(first, second, config["num_hidden_layers"], 0.5), tmp_path / "out")
    (note,) = (warning for warning in report.warnings if "computes as" in warning)
    assert f"rope_theta 50000 instead of 10000; the result computes as {first}" in note and "mem_rope" not in note


def test_integers_are_not_scaled(tmp_path: Path) -> None:
    """A base alone, with half its weight, is a sum of one."""
    config, base, other = parents()
    name = "model.final_layernorm.weight"
    counts = {name: torch.arange(len(base[name])) + 2**40 + 1}
    first, second = write(tmp_path, config, base | counts, other | counts)
    words: dict[str, Any] = {"merge_method": "linear", "parameters": {"normalize": False}}
    words["models"] = [{"model": str(parent), "parameters": {"weight": w}} for parent, w in ((first, 0.5), (second, 0))]
    report = merge(words | {"base_model": str(first)}, tmp_path / "out")
    assert torch.equal(read(tmp_path / "out")[name], counts[name])
    assert any(f"{name} holds no floating-point" in warning for warning in report.warnings)


def test_a_base_that_models_leaves_out_takes_part_in_linear(tmp_path: Path) -> None:
    """As in mergekit 0.1.5, which wants a weight for it, too."""
    config, base, other = parents()
    first, second = write(tmp_path, config, base, other)
    words: dict[str, Any] = {"merge_method": "linear", "base_model": str(first), "parameters": {"normalize": False}}
    words["models"] = [{"model": str(second), "parameters": {"weight": 0.25}}]
    with pytest.raises(ConfigError, match=f"no weight for {first}"):
        merge(words, tmp_path / "out")
    words["parameters"]["weight"] = 0.5
    merge(words, tmp_path / "out")
    for key, tensor in read(tmp_path / "out").items():
        wanted = 0.5 * base[key].double() + 0.25 * other[key].double()
        assert torch.allclose(tensor.double(), wanted, rtol=2**-7, atol=1e-6), key
