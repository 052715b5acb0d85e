"""A sequence through a mixer by one loop: right, used where it may be, and what PyTorch's operations do where not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zamba_compat  # noqa: F401
from conformance.helpers import load, relative
from support import synthetic
from support.asked import Asked
from support.tokens import prompt
from zamba_compat import configure
from zamba_compat.cpu import gemv, mixer_prefill, upcast
from zamba_compat.cpu.native import scan

pytest.importorskip("transformers", minversion="4.49")
pytestmark = pytest.mark.skipif(scan.loop() is None, reason="no loops in C here")
LENGTH = 140  # more than one block of the loop, and than one chunk of a scan


@pytest.fixture
def case() -> synthetic.Case:
    return synthetic.case("7B", length=LENGTH, time_step_min=1e-9)


@pytest.fixture
def model(case: synthetic.Case, tmp_path: Any) -> Any:
    """In float32."""
    return load(synthetic.write_checkpoint(tmp_path / "model", case.state, case.config)).eval()


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each sequence had."""
    seen: list[int] = []
    original = scan.Loop.run

    def run(self: Any, weights: Any, xbc: Tensor, *args: Any, **kwargs: Any) -> None:
        seen.append(len(xbc))
        original(self, weights, xbc, *args, **kwargs)

    monkeypatch.setattr(scan.Loop, "run", run)
    return seen


@pytest.fixture
def plain() -> Iterator[Any]:
    yield lambda on: configure(native=not on)
    configure(native=None)


def mixers(model: Any) -> list[Any]:
    return [module for module in model.modules() if type(module).__name__ == "Zamba2MambaMixer"]


def test_a_prompt(case: synthetic.Case, model: Any, taken: list[int]) -> None:
    wanted = synthetic.forward(case.state, case.config, case.ids)
    assert relative(prompt(model, case.ids).logits, wanted) < 2e-5
    assert taken == [LENGTH] * len(mixers(model))


def test_a_prompt_in_parts(case: synthetic.Case, model: Any, taken: list[int]) -> None:
    """States of one call are where the next one goes on, and where a token does."""
    wanted, found, cache = synthetic.forward(case.state, case.config, case.ids), [], None
    for part in case.ids.split([70, 2, LENGTH - 73, 1], 1):
        result = prompt(model, part, cache)
        cache = result.past_key_values
        found.append(result.logits)
    assert relative(torch.cat(found, 1), wanted) < 2e-5
    layers = len(mixers(model))
    assert taken == [70] * layers + [2] * layers + [LENGTH - 73] * layers


def test_a_batch_with_padding(case: synthetic.Case, model: Any, taken: list[int]) -> None:
    ids, kept = case.ids[:1].repeat(3, 1), torch.ones(3, LENGTH, dtype=torch.long)
    kept[1, :30] = kept[2, :139] = 0
    with torch.no_grad():
        found = model(ids, attention_mask=kept).logits
        for row, first in enumerate((0, 30, 139)):
            assert relative(found[row, first:], model(ids[:1, first:]).logits[0]) < 2e-5
    assert taken.count(LENGTH) == 4 * len(mixers(model))


def test_states_that_are_kept_stay(case: synthetic.Case, model: Any) -> None:
    """What a caller holds is not written to."""
    import copy

    cache = prompt(model, case.ids[:, :70]).past_key_values
    before = copy.deepcopy(cache)
    first = prompt(model, case.ids[:, 70:], cache).logits
    assert torch.equal(prompt(model, case.ids[:, 70:], before).logits, first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_as_right_as_pytorchs_operations(case: synthetic.Case, model: Any, dtype: torch.dtype, plain: Any) -> None:
    model.to(dtype)
    state = {name: tensor.to(dtype).float() for name, tensor in case.state.items()}
    wanted = synthetic.forward(state, case.config, case.ids)
    found = relative(prompt(model, case.ids).logits, wanted)
    plain(True)
    assert found < 1.2 * relative(prompt(model, case.ids).logits, wanted) + 1e-5


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("by", ["chunks", "vectors"])
def test_in_chunks_as_right_as_pytorchs_operations(
    by: str, groups: int, tmp_path: Any, plain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads as wide as those of published models; in bfloat16, with tiles or with AVX512-BF16."""
    chunks = getattr(scan, by)()
    if chunks is None:
        pytest.skip("no such instructions here")
    monkeypatch.setattr(mixer_prefill, "_chunks", getattr(scan, by))
    wide = {"hidden_size": 128, "n_mamba_heads": 4, "mamba_d_state": 64, "mamba_ngroups": groups}
    case = synthetic.case("7B", length=LENGTH, time_step_min=1e-9, **wide)
    state = {name: tensor.bfloat16() for name, tensor in case.state.items()}
    model = load(synthetic.write_checkpoint(tmp_path / "model", state, case.config), torch_dtype=torch.bfloat16)
    wanted = synthetic.forward({name: tensor.float() for name, tensor in state.items()}, case.config, case.ids)
    rows, run = [], chunks.run
    monkeypatch.setattr(
        chunks, "run", lambda weights, xbc, *args, **more: rows.append(len(xbc)) or run(weights, xbc, *args, **more)
    )

    def error() -> float:
        """Of a prompt and what goes on from it, of more tokens than one and of too few for a chunk."""
        found, cache = [], None
        for part in case.ids.split([70, 60, LENGTH - 130], 1):
            result = prompt(model, part, cache)
            cache = result.past_key_values
            found.append(result.logits)
        return relative(torch.cat(found, 1), wanted)

    found = error()
    assert rows == [70] * len(mixers(model)) + [60] * len(mixers(model))
    plain(True)
    assert found < 1.2 * error()
    assert len(rows) == 2 * len(mixers(model))


def test_chunks_by_what_the_processor_is_fast_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """As PyTorch's products are: what keeps oneDNN from instructions keeps us from them."""
    monkeypatch.setattr(scan, "chunks", lambda: "tiles")
    monkeypatch.setattr(scan, "vectors", lambda: "vectors")
    for tiles, instructions, wanted in ((True, True, "tiles"), (False, True, "vectors"), (False, False, None)):
        monkeypatch.setattr(gemv, "has_tiles", lambda tiles=tiles: tiles)
        monkeypatch.setattr(upcast, "has_instructions", lambda dtype, found=instructions: found)
        assert mixer_prefill._chunks() == wanted


def test_nothing_is_asked_between_projections(case: synthetic.Case, model: Any) -> None:
    """Nor more of a longer prompt."""

    mixer, count = mixers(model)[0], []
    for length in (70, LENGTH):
        with torch.no_grad(), Asked() as asked:
            mixer(torch.randn(1, length, case.config["hidden_size"]))
        count.append(len(asked.functions))
    assert count[0] == count[1] < 60, asked.functions


def test_under_autocast(case: synthetic.Case, model: Any, plain: Any) -> None:
    """Where in_proj's result is narrower than what is wanted."""

    def logits() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return prompt(model, case.ids[:, :70]).logits.float()

    found = logits()
    plain(True)
    assert relative(found, logits()) < 2e-2


def test_what_is_not_taken(case: synthetic.Case, model: Any, taken: list[int]) -> None:
    ids = case.ids[:, :9]
    wanted = prompt(model, ids).logits
    layers = mixers(model)
    assert taken == [9] * len(layers)
    taken.clear()
    assert relative(model(ids).logits.detach(), wanted) < 2e-5  # gradients
    for mixer in layers:
        mixer.norm.register_forward_hook(lambda *args: None)
    assert relative(prompt(model, ids).logits, wanted) < 2e-5
    for mixer in layers:
        mixer.norm._forward_hooks.clear()
        mixer.act = nn.Identity()
    assert relative(prompt(model, ids).logits, wanted) > 1e-3
    for mixer in layers:
        mixer.act = nn.SiLU()
    model.double()
    assert relative(prompt(model, ids).logits, wanted) < 2e-5
    assert taken == []
    model.float()
    prompt(model, ids)
    assert taken == [9] * len(layers)
