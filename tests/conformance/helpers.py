"""What the conformance tests share: loading, comparing, counting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from support import synthetic

TOLERANCE = 2e-5  # relative, float32 against the float64 reference
LENGTHS = (5, 16, 17, 41)  # below, at, just past and well past chunk_size


def case(pattern: str, **options: Any) -> synthetic.Case:
    """`synthetic.case`, with time steps that no release limits: that defect has a test of its own."""
    return synthetic.case(pattern, **{"time_step_min": 1e-9, **options})


def relative(got: Tensor, want: Tensor) -> float:
    """||got - want|| / ||want||, over all entries."""
    return (torch.linalg.vector_norm(got.double() - want) / torch.linalg.vector_norm(want)).item()


def assert_close(got: Tensor, want: Tensor, tolerance: float = TOLERANCE) -> None:
    error = relative(got, want)
    if not error < tolerance:
        pytest.fail(f"relative error {error:.2e} is not below {tolerance:.0e}", pytrace=False)


def lay_out(state: synthetic.State, config: synthetic.Config, layout: str) -> synthetic.State:
    if layout == "hub":
        return state
    if layout == "expanded":
        return synthetic.to_expanded(state, config)
    return synthetic.to_partial(state, config, layout)  # type: ignore[arg-type]


def load(directory: Path, auto: str = "AutoModelForCausalLM", **kwargs: Any) -> Any:
    import transformers

    model = getattr(transformers, auto).from_pretrained(directory, **kwargs)
    return model.eval()


@torch.no_grad()
def logits(model: Any, ids: Tensor, **kwargs: Any) -> Tensor:
    return model(ids, use_cache=False, **kwargs).logits


def shared_storages(model: nn.Module) -> dict[str, set[int]]:
    """For every suffix below shared_transformer that belongs to a block, the storages found at all layers."""
    found: dict[str, set[int]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        _, marker, suffix = name.partition(".shared_transformer.")
        if marker:
            found.setdefault(suffix, set()).add(parameter.data_ptr())
    return found


def distinct_parameters(model: nn.Module) -> int:
    """Numbers held in distinct tensors."""
    return sum(parameter.numel() for parameter in {p.data_ptr(): p for p in model.parameters()}.values())
