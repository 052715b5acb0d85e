"""Token by token by the loops in C: the reference's logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from conformance.helpers import Checkpoint, assert_close, load, relative
from conformance.helpers import case as make_case
from conformance.test_decoding import continued, forward
from support import synthetic

pytestmark = pytest.mark.ours
PROMPT = 20


def decoded(model: Any, ids: Tensor) -> Tensor:
    first = forward(model, ids[:, :PROMPT])
    got, cache = [], first.past_key_values
    for position in range(PROMPT, ids.shape[1]):
        step = continued(model, ids[:, position : position + 1], cache, position)
        got.append(step.logits)
        cache = step.past_key_values
    return torch.cat(got, 1)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often each loop runs."""
    from zamba_compat.cpu.native import rows, token

    if token.loop() is None or rows.loop() is None:
        pytest.skip("no loops in C here")
    loops = {
        "step": (token.Loop, "step"),
        "whole": (token.Loop, "whole"),
        "row": (rows.Loop, "product"),
    }
    seen = dict.fromkeys(loops, 0)

    def watched(original: Any, name: str) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            seen[name] += 1
            return original(*args, **kwargs)

        return run

    for name, (kind, method) in loops.items():
        monkeypatch.setattr(kind, method, watched(getattr(kind, method), name))
    return seen


@pytest.mark.parametrize("pattern", ["1.2B", "2.7B", "7B"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_token_at_a_time(pattern: str, dtype: torch.dtype, counted: dict[str, int], checkpoint: Checkpoint) -> None:
    from zamba_compat import configure

    case = make_case(pattern, length=28)
    state = {name: tensor.to(dtype) for name, tensor in case.state.items()}
    model = load(checkpoint(pattern, dtype=dtype), torch_dtype=dtype)
    wanted = synthetic.forward(state, case.config, case.ids)[:, PROMPT:]
    got, tokens = decoded(model, case.ids), case.ids.shape[1] - PROMPT
    mixers, uses = len(model.model.layers), len(synthetic.hybrid_layers(case.config))
    if dtype == torch.float32:
        assert_close(got, wanted)
        assert counted == {**dict.fromkeys(counted, 0), "step": mixers * tokens}
        return
    linears = 9 + (6 if case.config["use_shared_attention_adapter"] else 0)  # of a hybrid layer, but for the mixer's
    assert counted == {
        "step": 0,
        "whole": mixers * tokens,
        "row": (linears * uses + 1) * tokens,  # and the head's
    }
    configure(native=False)
    try:
        others = relative(decoded(model, case.ids), wanted)
    finally:
        configure(native=None)
    assert relative(got, wanted) < 1.1 * others < 0.05
