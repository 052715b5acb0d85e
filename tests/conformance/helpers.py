"""What the conformance tests share: loading, comparing, counting."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from support import synthetic

TOLERANCE = 2e-5  # relative, float32 against the float64 reference
LENGTHS = (5, 16, 17, 41)  # below, at, just past and well past chunk_size


Checkpoint = Callable[..., Path]


def case(pattern: str, length: int = 40, **options: Any) -> synthetic.Case:
    """As `synthetic.case`, with time steps that no release limits: that defect has a test of its own.

    The tensors are those of every other call: not to be written to, which `unchanged` sees to. Config and state are
    dicts of the caller's own. options: config entries with hashable values.
    """
    overrides = tuple(sorted({"time_step_min": 1e-9, **options}.items()))
    return synthetic.Case(*weights(pattern, overrides), *answers(pattern, length, overrides))


def weights(pattern: str, overrides: tuple[tuple[str, Any], ...]) -> tuple[synthetic.Config, synthetic.State]:
    config = synthetic.make_config(pattern, **dict(overrides))
    return config, dict(_state(pattern, overrides))


@cache
def _state(pattern: str, overrides: tuple[tuple[str, Any], ...]) -> synthetic.State:
    return synthetic.make_state(synthetic.make_config(pattern, **dict(overrides)))


@cache
def answers(pattern: str, length: int, overrides: tuple[tuple[str, Any], ...]) -> tuple[Tensor, Tensor]:
    """Token ids, [1, length], and the reference's logits, [1, length, vocab], float64."""
    config, state = weights(pattern, overrides)
    ids = synthetic.make_ids(config, length)
    logits = synthetic.forward(state, config, ids)
    _handed_out.extend((tensor, tensor._version) for tensor in (*state.values(), ids, logits))
    return ids, logits


_handed_out: list[tuple[Tensor, int]] = []


def unchanged() -> bool:
    """Whether no test has written to a tensor that all share."""
    return all(tensor._version == before for tensor, before in _handed_out)


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


def checkpoints(directory: Path) -> Checkpoint:
    """Writes `case`'s weights below `directory`, each variant once: what it returns is for reading only."""

    @cache
    def written(
        pattern: str,
        layout: str = "hub",
        *,
        max_shard_size: int | None = None,
        format: Literal["safetensors", "bin"] = "safetensors",
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> Path:
        config, state = weights(pattern, tuple(sorted({"time_step_min": 1e-9, **options}.items())))
        state = {name: tensor.to(dtype) for name, tensor in lay_out(state, config, layout).items()}
        folder = directory / str(len(list(directory.iterdir())))
        synthetic.write_checkpoint(folder, state, config, max_shard_size=max_shard_size, format=format)
        for file in folder.iterdir():
            file.chmod(0o444)
        return folder

    return written


def load(directory: Path, auto: str = "AutoModelForCausalLM", **kwargs: Any) -> Any:
    import transformers

    model = getattr(transformers, auto).from_pretrained(directory, **kwargs)
    return model.eval()


@torch.no_grad()
def logits(model: Any, ids: Tensor, **kwargs: Any) -> Tensor:
    return model(ids, use_cache=False, **kwargs).logits


@torch.no_grad()
def cached_logits(model: Any, ids: Tensor) -> Tensor:
    """The same, the last token after a cache of the others."""
    first = model(ids[:, :-1], use_cache=True)
    mask, position = torch.ones_like(ids), torch.tensor([ids.shape[1] - 1])
    more: dict[str, Any] = {"past_key_values": first.past_key_values, "use_cache": True, "attention_mask": mask}
    try:
        second = model(ids[:, -1:], cache_position=position, **more)
    except TypeError:  # releases that count the tokens themselves
        second = model(ids[:, -1:], **more)
    return torch.cat([first.logits, second.logits], 1)


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
