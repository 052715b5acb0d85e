"""A mixer's token in one call: right, of weights as they are now, and only where nobody sees the modules called."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zamba_compat  # noqa: F401
from support import synthetic
from support.tokens import narrow, off, prompt, run
from zamba_compat import configure
from zamba_compat.cpu import mixer_decode, nf4
from zamba_compat.cpu.bnb_packed import packed_bytes
from zamba_compat.cpu.native import rows, token

pytest.importorskip("transformers", minversion="4.49")
pytestmark = pytest.mark.skipif(token.loop() is None or rows.loop() is None, reason="no loops in C here")


@pytest.fixture
def case() -> synthetic.Case:
    return synthetic.case("7B", length=26, time_step_min=1e-9)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often a token was taken whole, and between its projections."""
    seen = {"whole": 0, "step": 0}

    def watched(name: str) -> Any:
        original = getattr(token.Loop, name)

        def run(*args: Any, **kwargs: Any) -> Any:
            seen[name] += 1
            return original(*args, **kwargs)

        return run

    for name in seen:
        monkeypatch.setattr(token.Loop, name, watched(name))
    return seen


def mixers(model: Any) -> list[Any]:
    return [module for module in model.modules() if type(module).__name__ == "Zamba2MambaMixer"]


def without(model: Any, ids: Tensor) -> Tensor:
    configure(native=False)
    try:
        return run(model, ids).double()
    finally:
        configure(native=None)


def test_whole(case: synthetic.Case, model: Any, taken: dict[str, int]) -> None:
    got = run(model, case.ids)
    assert taken == {"whole": 6 * len(mixers(model)), "step": 0}
    wanted = synthetic.forward(narrow(case.state), case.config, case.ids)[:, 20:]
    assert off(got, wanted) < 1.1 * off(without(model, case.ids), wanted) < 0.05


CHANGES = {
    "in place": lambda weight: weight.mul_(1.5),
    "unseen": lambda weight: weight.data.mul_(1.5),
    "other memory": lambda weight: setattr(weight, "data", weight.data * 1.5),
    "laid out otherwise": lambda weight: setattr(weight, "data", (weight.data * 1.5).mT.contiguous().mT),
    "float32": lambda weight: setattr(weight, "data", weight.data.float() * 1.5),
}
MATRICES = ("in_proj.weight", "out_proj.weight")
OTHERS = ("conv1d.weight", "conv1d.bias", "dt_bias", "A_log", "D", "norm.weight")
CASES = [(name, change) for name in MATRICES for change in CHANGES if change != "float32"]  # no product of two dtypes
CASES += [(name, change) for name in OTHERS for change in CHANGES if change != "laid out otherwise"]


@pytest.mark.parametrize(("name", "change"), CASES)
def test_weights_are_those_of_now(case: synthetic.Case, model: Any, name: str, change: str) -> None:
    before = run(model, case.ids)
    with torch.no_grad():
        for mixer in mixers(model):
            CHANGES[change](mixer.get_parameter(name))
    changed = run(model, case.ids)
    assert off(changed, before.double()) > 1e-3
    assert off(changed, without(model, case.ids)) < 0.03


def test_what_is_no_weight(case: synthetic.Case, model: Any) -> None:
    before = run(model, case.ids)
    for mixer in mixers(model):
        mixer.norm.variance_epsilon = 0.1
    changed = run(model, case.ids)
    assert off(changed, before.double()) > 1e-3
    assert off(changed, without(model, case.ids)) < 0.03


def test_a_token_of_another_width_is_left_to_pytorch(model: Any) -> None:
    """Which says what is wrong with it."""
    mixer = mixers(model)[0]
    conv = torch.zeros(1, mixer.conv1d.weight.shape[0], 4).bfloat16()
    ssm = torch.zeros(1, mixer.num_heads, mixer.head_dim, mixer.ssm_state_size)
    with torch.no_grad():
        assert mixer_decode.whole(mixer, torch.zeros(1, 1, 64).bfloat16(), conv, ssm, limit=None, overwrite=True)
        assert not mixer_decode.whole(mixer, torch.zeros(1, 1, 32).bfloat16(), conv, ssm, limit=None, overwrite=True)


def test_other_parameters_and_modules(case: synthetic.Case, model: Any, taken: dict[str, int]) -> None:
    run(model, case.ids)
    whole = taken["whole"]
    for mixer in mixers(model):
        mixer.out_proj.weight = nn.Parameter(-mixer.out_proj.weight.detach(), requires_grad=False)
    changed = run(model, case.ids)
    assert taken["whole"] == 2 * whole
    assert off(changed, without(model, case.ids)) < 0.03

    class Other(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return -super().forward(x)

    for mixer in mixers(model):
        mixer.out_proj.__class__ = Other
    changed = run(model, case.ids)
    assert taken == {"whole": 2 * whole, "step": whole}
    assert off(changed, without(model, case.ids)) < 0.03


@pytest.mark.parametrize("of", ["in_proj", "out_proj", "norm"])
def test_modules_that_are_watched_are_called(case: synthetic.Case, model: Any, taken: dict[str, int], of: str) -> None:
    called = []
    for mixer in mixers(model):
        mixer.get_submodule(of).register_forward_hook(lambda module, given, found: called.append(found))
    run(model, case.ids)
    assert taken == {"whole": 0, "step": 0} and len(called) == 7 * len(mixers(model))


def test_what_is_not_taken_whole(case: synthetic.Case, model: Any, taken: dict[str, int]) -> None:
    """Several rows, float32, another activation, and with gradients not even the rest."""
    run(model, case.ids.repeat(2, 1))
    assert taken["whole"] == 0 and taken["step"]
    cache = prompt(model, case.ids[:, :20]).past_key_values
    before = taken["step"]
    model(case.ids[:, 20:21], past_key_values=cache, use_cache=True)
    assert taken == {"whole": 0, "step": before}
    for mixer in mixers(model):
        mixer.act = nn.GELU()
    run(model, case.ids)
    assert taken == {"whole": 0, "step": before}
    for mixer in mixers(model):
        mixer.act = nn.SiLU()
    run(model.float(), case.ids)
    assert taken["whole"] == 0 and taken["step"] > before


@pytest.mark.parametrize("overwrite", [False, True])
def test_states_stay_with_whoever_holds_them(model: Any, overwrite: bool) -> None:
    mixer = mixers(model)[0]
    heads, channels = mixer.num_heads, mixer.conv1d.weight.shape[0]
    conv = torch.randn(1, channels, 4).bfloat16()
    ssm = torch.randn(1, heads, mixer.head_dim, mixer.ssm_state_size)
    held = conv.clone(), ssm.clone()
    x = torch.randn(1, 1, 64).bfloat16()
    with torch.no_grad():
        found = mixer_decode.whole(mixer, x, conv, ssm, limit=None, overwrite=overwrite)
    assert found is not None
    assert (found[1] is conv and found[2] is ssm) == overwrite
    assert torch.equal(conv, held[0]) != overwrite and torch.equal(ssm, held[1]) != overwrite


def test_it_is_not_missing_in_a_trace(case: synthetic.Case, model: Any) -> None:
    """torch.jit.trace sees no loop in C: while it looks on there is none."""
    mixer, seen = mixers(model)[0], []
    heads, channels = mixer.num_heads, mixer.conv1d.weight.shape[0]
    conv, ssm = torch.zeros(1, channels, 4).bfloat16(), torch.zeros(1, heads, mixer.head_dim, mixer.ssm_state_size)

    def token_of(x: Tensor) -> Tensor:
        seen.append(mixer_decode.whole(mixer, x, conv, ssm, limit=None, overwrite=False))
        return x + 1

    with torch.no_grad():
        token_of(torch.zeros(1, 1, 64).bfloat16())
        torch.jit.trace(token_of, torch.zeros(1, 1, 64).bfloat16(), check_trace=False)
    assert seen[0] is not None and seen[1] is None


def quantized(model: Any) -> None:
    """The projections in NF4 by bitsandbytes."""
    bitsandbytes = pytest.importorskip("bitsandbytes", minversion="0.45")
    for mixer in mixers(model):
        for name in ("in_proj", "out_proj"):
            weight = getattr(mixer, name).weight.detach()
            new = bitsandbytes.nn.Linear4bit(
                weight.shape[1], weight.shape[0], bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
            )
            new.weight = bitsandbytes.nn.Params4bit(weight.clone(), requires_grad=False, quant_type="nf4")
            new = new.to("cpu")
            new.support_avx512bf16_for_cpu = False  # as on most processors
            setattr(mixer, name, new)


def dequantized(model: Any) -> Any:
    """The same model with what they mean."""
    from bitsandbytes.functional import dequantize_4bit

    for mixer in mixers(model):
        for name in ("in_proj", "out_proj"):
            weight = getattr(mixer, name).weight
            plain = nn.Linear(*weight.quant_state.shape[::-1], bias=False, dtype=torch.bfloat16)
            plain.weight = nn.Parameter(
                dequantize_4bit(weight.data, weight.quant_state).bfloat16(), requires_grad=False
            )
            setattr(mixer, name, plain)
    return model


def test_projections_of_4_bits(case: synthetic.Case, model: Any, taken: dict[str, int]) -> None:
    quantized(model)
    got = run(model, case.ids)
    assert taken == {"whole": 6 * len(mixers(model)), "step": 0}
    wanted = run(dequantized(model).double(), case.ids)
    configure(native=False)
    try:
        assert off(got, wanted) < 1.2 * off(run(model.bfloat16(), case.ids), wanted) < 0.05
    finally:
        configure(native=None)


OTHERWISE = {
    "a bias": lambda module: setattr(module, "bias", nn.Parameter(torch.ones(module.out_features).bfloat16())),
    "another dtype": lambda module: setattr(module, "compute_dtype", torch.float32),
    "watched": lambda module: module.register_forward_hook(lambda *given: None),
}


@pytest.mark.parametrize("which", OTHERWISE)
def test_projections_of_4_bits_that_are_called(model: Any, taken: dict[str, int], which: str) -> None:
    quantized(model)
    mixer = mixers(model)[0]
    conv = torch.zeros(1, mixer.conv1d.weight.shape[0], 4).bfloat16()
    ssm = torch.zeros(1, mixer.num_heads, mixer.head_dim, mixer.ssm_state_size)

    def found() -> bool:
        with torch.no_grad():
            x = torch.zeros(1, 1, 64).bfloat16()
            return mixer_decode.whole(mixer, x, conv, ssm, limit=None, overwrite=True) is not None

    assert found()
    OTHERWISE[which](mixer.out_proj)
    assert not found()


def test_projections_of_4_bits_in_another_layout(model: Any, taken: dict[str, int]) -> None:
    quantized(model)
    weight = mixers(model)[0].in_proj.weight
    x = torch.zeros(1, 64).bfloat16()
    with torch.no_grad():
        assert nf4.matrix_of(mixers(model)[0].in_proj, x) is not None
        weight.quant_state.cpu_plain = weight.shape, weight.dtype
        weight.data = packed_bytes(weight.data.reshape(weight.quant_state.shape[0], -1))
        assert nf4.matrix_of(mixers(model)[0].in_proj, x) is None


def test_4_bits_that_were_changed(case: synthetic.Case, model: Any) -> None:
    """Other codes in place, another scale, and nothing that is kept alive by what was made of it."""
    quantized(model)
    before = run(model, case.ids)
    weight = mixers(model)[0].in_proj.weight
    weight.quant_state.absmax = weight.quant_state.absmax.clone().fill_(200 if weight.quant_state.nested else 1)
    changed = run(model, case.ids)
    assert off(changed, before.double()) > 1e-3
    assert off(changed, run(dequantized(model), case.ids).double()) < 0.03
    gone = weakref.ref(weight)
    del weight
    gc.collect()
    assert gone() is None
