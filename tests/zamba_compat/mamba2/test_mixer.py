"""The mixer against the token-by-token recurrence."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from support import reference
from zamba_compat.cpu.blocking import BLOCK
from zamba_compat.cpu.native.token import Loop, loop
from zamba_compat.mamba2.mixer import mixer_forward, time_step_limit

HEADS, GROUPS, HEAD_DIM, D_STATE, TAPS, HIDDEN = 6, 2, 5, 3, 4, 8
INNER, CONV_DIM = HEADS * HEAD_DIM, HEADS * HEAD_DIM + 2 * GROUPS * D_STATE


def test_time_step_limit() -> None:
    assert time_step_limit(SimpleNamespace()) is None
    assert time_step_limit(SimpleNamespace(time_step_limit=None, time_step_min=0.5)) is None
    assert time_step_limit(SimpleNamespace(time_step_limit=[0, 2])) == (0.0, 2.0)


class Projection(nn.Module):
    """A linear layer that has no attribute `weight`, as a quantized or wrapped one may not."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.inside = nn.ModuleDict({"linear": linear})

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inside["linear"](x)
        return result


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(INNER) + 0.5)

    def forward(self, y: Tensor, gate: Tensor) -> Tensor:
        gated = (y * F.silu(gate.to(y.dtype))).unflatten(-1, (GROUPS, -1))
        normed = gated * torch.rsqrt(gated.square().mean(-1, keepdim=True) + reference.MIXER_NORM_EPS)
        return self.weight * normed.flatten(-2)


class Mixer(nn.Module):
    """What `mixer_forward` asks of a Zamba2MambaMixer; some steps are far below time_step_min."""

    def __init__(self, bias: bool = True, chunk_size: int = 8, limit: Any = None) -> None:
        super().__init__()
        self.config = SimpleNamespace(time_step_limit=limit, time_step_min=0.001)
        self.intermediate_size, self.num_heads = INNER, HEADS
        self.n_groups, self.ssm_state_size, self.chunk_size = GROUPS, D_STATE, chunk_size
        self.in_proj = Projection(nn.Linear(HIDDEN, INNER + CONV_DIM + HEADS, bias=bias))
        self.conv1d = nn.Conv1d(CONV_DIM, CONV_DIM, TAPS, groups=CONV_DIM, padding=TAPS - 1)
        self.act = nn.SiLU()
        self.dt_bias = nn.Parameter(torch.linspace(-9, -1, HEADS))
        self.A_log = nn.Parameter(torch.linspace(1, -2, HEADS))
        self.D = nn.Parameter(torch.rand(HEADS))
        self.norm = Norm()
        self.out_proj = Projection(nn.Linear(INNER, HIDDEN, bias=bias))
        self.double()


def by_reference(mixer: Mixer, u: Tensor) -> Tensor:
    """One row through the reference mixer, float64."""
    state = {name.replace("inside.linear.", ""): t.detach() for name, t in mixer.named_parameters()}
    config = {
        "n_mamba_heads": HEADS,
        "mamba_ngroups": GROUPS,
        "mamba_d_state": D_STATE,
        "mamba_expand": 1,  # it asks for the product alone
        "hidden_size": INNER,
        "time_step_limit": mixer.config.time_step_limit,
    }
    return reference._mamba2(reference._Weights(state, "", torch.float64), config, u)[0]


@pytest.fixture
def mixer() -> Mixer:
    return Mixer()


def padded(rows: list[Tensor], places: list[list[int]], seq: int) -> tuple[Tensor, Tensor]:
    """Rows of different lengths at the places given, noise between them; and the mask."""
    hidden = torch.randn(len(rows), seq, HIDDEN, dtype=torch.float64)
    mask = torch.zeros(len(rows), seq, dtype=torch.long)
    for i, (row, place) in enumerate(zip(rows, places, strict=True)):
        hidden[i, place] = row
        mask[i, place] = 1
    return hidden, mask


@pytest.mark.parametrize("seq", [1, 2, 4, 7, 8, 9, 20])
@pytest.mark.parametrize("limit", [None, (0.01, 0.1)])
def test_mixer_is_the_reference(seq: int, limit: Any) -> None:
    mixer = Mixer(limit=limit)
    u = torch.randn(2, seq, HIDDEN, dtype=torch.float64)
    output, conv_state, ssm_state = mixer_forward(mixer, u)
    wanted = torch.stack([by_reference(mixer, row) for row in u])
    torch.testing.assert_close(output, wanted, rtol=1e-10, atol=1e-11)
    assert conv_state.shape == (2, CONV_DIM, TAPS)
    assert ssm_state.shape == (2, HEADS, HEAD_DIM, D_STATE)


@pytest.mark.parametrize("cuts", [(1,), (2, 3), (9, 10, 11), (8, 13), (3, 20)])
def test_mixer_goes_on_from_its_states(mixer: Mixer, cuts: tuple[int, ...]) -> None:
    u = torch.randn(2, 21, HIDDEN, dtype=torch.float64)
    outputs, conv_state, ssm_state = [], None, None
    for start, end in zip((0, *cuts), (*cuts, 21), strict=True):
        output, conv_state, ssm_state = mixer_forward(
            mixer, u[:, start:end], conv_state=conv_state, ssm_state=ssm_state
        )
        outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs, 1), mixer_forward(mixer, u)[0])


@pytest.mark.parametrize("where", ["left", "right", "between", "mixed"])
def test_rows_come_out_as_without_padding(mixer: Mixer, where: str) -> None:
    """Noise at the padding, a bias in the projection, and rows beyond chunk_size: none of it may leak."""
    lengths, seq = (3, 11, 19, 20), 20
    rows = [torch.randn(n, HIDDEN, dtype=torch.float64) for n in lengths]
    places = {
        "left": [list(range(seq - n, seq)) for n in lengths],
        "right": [list(range(n)) for n in lengths],
        "between": [sorted(torch.randperm(seq)[:n].tolist()) for n in lengths],
    }
    places["mixed"] = [places["left"][0], places["right"][1], places["between"][2], places["left"][3]]
    hidden, mask = padded(rows, places[where], seq)
    output, conv_state, ssm_state = mixer_forward(mixer, hidden, attention_mask=mask)
    # The states too: what follows sees no padding.
    token = torch.randn(len(rows), 1, HIDDEN, dtype=torch.float64)
    more = mixer_forward(mixer, token, conv_state=conv_state, ssm_state=ssm_state)[0]
    for i, row in enumerate(rows):
        wanted = by_reference(mixer, torch.cat([row, token[i]]))
        torch.testing.assert_close(output[i, places[where][i]], wanted[:-1], rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(more[i], wanted[-1:], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("mask_type", [torch.long, torch.bool, torch.float32])
def test_padding_in_the_second_turn(mixer: Mixer, mask_type: torch.dtype) -> None:
    """A mask that covers the past as well, and padding between a row's past and its new tokens."""
    lengths = ((5, 4), (7, 1), (2, 2), (1, 0))
    whole = [torch.randn(sum(n), HIDDEN, dtype=torch.float64) for n in lengths]
    turns = list(zip(whole, lengths, strict=True))
    first, first_mask = padded([row[:n] for row, (n, _) in turns], [list(range(7 - n, 7)) for n, _ in lengths], 7)
    second, second_mask = padded([row[n:] for row, (n, _) in turns], [list(range(4 - k, 4)) for _, k in lengths], 4)
    mask = torch.cat([first_mask, second_mask], 1).to(mask_type)
    _, conv_state, ssm_state = mixer_forward(mixer, first, attention_mask=mask[:, :7])
    output, conv_state, ssm_state = mixer_forward(
        mixer, second, conv_state=conv_state, ssm_state=ssm_state, attention_mask=mask
    )
    token = torch.randn(4, 1, HIDDEN, dtype=torch.float64)
    last_mask = torch.cat([mask, torch.ones(4, 1).to(mask_type)], 1)
    last_mask[3, -1] = 0
    third, conv_after, ssm_after = mixer_forward(
        mixer, token, conv_state=conv_state, ssm_state=ssm_state, attention_mask=last_mask
    )
    for i, (n, k) in enumerate(lengths):
        wanted = by_reference(mixer, torch.cat([whole[i], token[i]]))
        torch.testing.assert_close(output[i, 4 - k :], wanted[n : n + k], rtol=1e-10, atol=1e-11)
        if i < 3:
            torch.testing.assert_close(third[i], wanted[-1:], rtol=1e-10, atol=1e-11)
    assert torch.equal(conv_after[3], conv_state[3])
    assert torch.equal(ssm_after[3], ssm_state[3])


def test_a_mask_of_another_rank_is_left_to_the_attention(mixer: Mixer) -> None:
    u = torch.randn(1, 5, HIDDEN, dtype=torch.float64)
    mask = torch.zeros(1, 1, 5, 5, dtype=torch.long)
    assert torch.equal(mixer_forward(mixer, u, attention_mask=mask)[0], mixer_forward(mixer, u)[0])


@pytest.mark.parametrize("where", ["left", "between"])
def test_padding_stays_out_of_gradients(mixer: Mixer, where: str) -> None:
    row = torch.randn(11, HIDDEN, dtype=torch.float64)
    places = list(range(4, 15)) if where == "left" else [0, 1, *range(6, 15)]
    hidden, mask = padded([row], [places], 15)
    hidden.requires_grad_()
    output = mixer_forward(mixer, hidden, attention_mask=mask)[0]
    output[0, places].square().sum().backward()
    assert hidden.grad is not None
    got = {name: p.grad.clone() for name, p in mixer.named_parameters() if p.grad is not None}
    mixer.zero_grad()
    mixer_forward(mixer, row[None])[0].square().sum().backward()
    for name, parameter in mixer.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, msg=name)
    assert not hidden.grad[0, mask[0] == 0].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("seq", [1, 12])
def test_dtypes(mixer: Mixer, dtype: torch.dtype, seq: int) -> None:
    u = torch.randn(1, seq, HIDDEN, dtype=torch.float64)
    wanted = mixer_forward(mixer, u)[0]
    mixer.to(dtype)
    output, conv_state, ssm_state = mixer_forward(mixer, u.to(dtype))
    assert output.dtype == conv_state.dtype == dtype
    assert ssm_state.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    again = mixer_forward(mixer, u[:, :1].to(dtype), conv_state=conv_state, ssm_state=ssm_state)
    assert [t.dtype for t in again] == [output.dtype, conv_state.dtype, ssm_state.dtype]
    torch.testing.assert_close(output.double(), wanted, rtol=0, atol=8 * torch.finfo(dtype).eps)


def test_autocast_rounds_the_projections_alone(mixer: Mixer) -> None:
    mixer.float()
    u = torch.randn(1, 12, HIDDEN)
    projected = mixer.in_proj(u)
    mixer.in_proj.forward = lambda _: projected
    mixer.out_proj.forward = lambda y: y
    wanted = mixer_forward(mixer, u)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mixer_forward(mixer, u)[0], wanted)


def test_an_offloaded_convolution_is_brought_in(mixer: Mixer) -> None:
    u = torch.randn(1, 5, HIDDEN, dtype=torch.float64)
    wanted = mixer_forward(mixer, u)[0]
    here = dict(mixer.conv1d.named_parameters())
    meta = {name: nn.Parameter(p.to("meta")) for name, p in here.items()}
    calls: list[str] = []

    def hold(parameters: dict[str, nn.Parameter], call: str) -> None:
        calls.append(call)
        for name, parameter in parameters.items():
            setattr(mixer.conv1d, name, parameter)

    hold(meta, "offload")
    mixer.conv1d._hf_hook = SimpleNamespace(
        pre_forward=lambda module: hold(here, "pre"), post_forward=lambda module, output: hold(meta, "post")
    )
    assert torch.equal(mixer_forward(mixer, u)[0], wanted)
    assert calls == ["offload", "pre", "post"]
    assert mixer.conv1d.weight.device.type == "meta"


def test_meta_tensors_have_shapes(mixer: Mixer) -> None:
    mixer.to("meta")
    u = torch.empty(2, 20, HIDDEN, device="meta", dtype=torch.float64)
    mask = torch.ones(2, 20, device="meta")
    output, conv_state, ssm_state = mixer_forward(mixer, u, attention_mask=mask)
    assert output.shape == u.shape
    assert (conv_state.shape, ssm_state.shape) == ((2, CONV_DIM, TAPS), (2, HEADS, HEAD_DIM, D_STATE))


@pytest.mark.parametrize("groups_of_rows", [1, 3])
@pytest.mark.parametrize("cuts", [(), (1,), (8, 9, 17), (19, 20)])
def test_without_gradients_the_same_in_place(mixer: Mixer, cuts: tuple[int, ...], groups_of_rows: int) -> None:
    """Chunk by chunk, block by block and token by token; what a caller keeps stays, unless it may be overwritten."""
    u = torch.randn(groups_of_rows, 21, HIDDEN, dtype=torch.float64)
    wanted, wanted_conv, wanted_ssm = mixer_forward(mixer, u)
    for overwrite in (False, True):
        outputs, conv_state, ssm_state = [], None, None
        for start, end in zip((0, *cuts), (*cuts, 21), strict=True):
            kept = ssm_state, None if ssm_state is None else ssm_state.clone()
            with torch.no_grad():
                output, conv_state, ssm_state = mixer_forward(
                    mixer, u[:, start:end], conv_state=conv_state, ssm_state=ssm_state, overwrite=overwrite
                )
            outputs.append(output)
            if kept[0] is not None:
                assert (ssm_state is kept[0]) == overwrite
                assert torch.equal(kept[0], kept[1]) != overwrite
        torch.testing.assert_close(torch.cat(outputs, 1), wanted, rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(conv_state, wanted_conv)
        torch.testing.assert_close(ssm_state, wanted_ssm, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("where", ["left", "right", "between"])
def test_padding_without_gradients(mixer: Mixer, where: str) -> None:
    places = {"left": range(9, 20), "right": range(11), "between": [0, 1, *range(4, 9), *range(15, 19)]}[where]
    row = torch.randn(11, HIDDEN, dtype=torch.float64)
    hidden, mask = padded([row], [list(places)], 20)
    with torch.no_grad():
        output, conv_state, ssm_state = mixer_forward(mixer, hidden, attention_mask=mask)
        # A step whose only token is padding moves nothing.
        none = torch.zeros(1, 1, dtype=torch.long)
        still = mixer_forward(
            mixer, hidden[:, :1], conv_state=conv_state, ssm_state=ssm_state, attention_mask=none, overwrite=True
        )
    torch.testing.assert_close(output[0, list(places)], by_reference(mixer, row), rtol=1e-10, atol=1e-11)
    _, wanted_conv, wanted_ssm = mixer_forward(mixer, row[None])
    for _, conv, ssm in ((output, conv_state, ssm_state), still):
        torch.testing.assert_close(conv, wanted_conv)
        torch.testing.assert_close(ssm, wanted_ssm, rtol=1e-10, atol=1e-11)


def test_long_rows_go_through_in_blocks(mixer: Mixer) -> None:
    u = torch.randn(2, BLOCK + 70, HIDDEN)
    mixer.float()
    with torch.no_grad():
        got = mixer_forward(mixer, u)
    for a, b in zip(got, mixer_forward(mixer, u), strict=True):
        assert reference.relative_difference(a, b.detach()) < 2e-6


def test_fast_decay_without_gradients(mixer: Mixer) -> None:
    """Where exp would overflow above the diagonal, and float32 cannot tell the tokens after it apart."""
    mixer.float()
    with torch.no_grad():
        mixer.dt_bias[::2] = 1e4
        u = torch.randn(1, 40, HIDDEN)
        got = mixer_forward(mixer, u)[0]
        assert reference.relative_difference(got[0], by_reference(mixer, u[0].double())) < 1e-5


def test_states_of_inference_mode_are_usable_outside(mixer: Mixer) -> None:
    u = torch.randn(1, 9, HIDDEN, dtype=torch.float64)
    with torch.inference_mode():
        _, conv_state, ssm_state = mixer_forward(mixer, u[:, :8])
    with torch.no_grad():
        token = mixer_forward(mixer, u[:, 8:], conv_state=conv_state, ssm_state=ssm_state, overwrite=True)[0]
    torch.testing.assert_close(token, mixer_forward(mixer, u)[0][:, 8:])


@pytest.mark.parametrize("seq", [1, 12])
def test_a_16_bit_model_is_no_further_off_without_gradients(seq: int) -> None:
    """Off from float64 on the same weights: no more than where every step is kept in float32."""
    wide = Mixer(chunk_size=64).bfloat16().double()
    narrow = copy.deepcopy(wide).bfloat16()
    u = torch.randn(4, seq, HIDDEN).bfloat16()
    wanted = mixer_forward(wide, u.double())[0]
    off = reference.relative_difference(mixer_forward(narrow, u)[0].detach(), wanted)
    with torch.no_grad():
        assert reference.relative_difference(mixer_forward(narrow, u)[0], wanted) <= 1.5 * off + 1e-4


@pytest.mark.parametrize("groups_of_rows", [1, 3])
@pytest.mark.parametrize("limit", [None, (0.01, 0.1)])
@pytest.mark.parametrize("overwrite", [False, True])
def test_one_token_by_the_loop_in_c(
    groups_of_rows: int, limit: Any, overwrite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, token after token: what float64 gives, and nothing of a caller's is written that he keeps."""
    if loop() is None:
        pytest.skip("no loops in C here")
    mixer, seen = Mixer(limit=limit), []
    u = torch.randn(groups_of_rows, 21, HIDDEN, dtype=torch.float64)
    wanted, _, wanted_ssm = mixer_forward(mixer, u)
    mixer.float()
    step = Loop.step
    monkeypatch.setattr(Loop, "step", lambda *args, **kwargs: seen.append(1) or step(*args, **kwargs))
    with torch.no_grad():
        output, conv_state, ssm_state = mixer_forward(mixer, u[:, :9].float())
        outputs = [output]
        for i in range(9, 21):
            kept = conv_state, ssm_state, conv_state.clone(), ssm_state.clone()
            states = {"conv_state": conv_state, "ssm_state": ssm_state, "overwrite": overwrite}
            output, conv_state, ssm_state = mixer_forward(mixer, u[:, i : i + 1].float(), **states)
            outputs.append(output)
            assert (conv_state is kept[0]) == (ssm_state is kept[1]) == overwrite
            assert torch.equal(kept[0], kept[2]) == torch.equal(kept[1], kept[3]) != overwrite
    assert len(seen) == 12
    torch.testing.assert_close(torch.cat(outputs, 1).double(), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ssm_state.double(), wanted_ssm, rtol=1e-4, atol=1e-5)


def test_tensors_without_memory_are_not_for_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those are that tracing runs a model with, to learn its shapes: on a CPU, by what they say."""
    mixer = Mixer().float()
    monkeypatch.setattr(Loop, "step", lambda *args, **kwargs: pytest.fail("there is nothing to read"))
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        u = torch.randn(1, 8, HIDDEN)
        _, conv_state, ssm_state = mixer_forward(mixer, u[:, :7])
        output, *_ = mixer_forward(mixer, u[:, 7:], conv_state=conv_state, ssm_state=ssm_state, overwrite=True)
    assert output.shape == (1, 1, HIDDEN)


def test_another_activation_is_not_for_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    mixer = Mixer().float()
    mixer.act = nn.GELU()
    monkeypatch.setattr(Loop, "step", lambda *args, **kwargs: pytest.fail("it computes SiLU"))
    u = torch.randn(1, 8, HIDDEN)
    with torch.no_grad():
        _, conv_state, ssm_state = mixer_forward(mixer, u[:, :7])
        found = mixer_forward(mixer, u[:, 7:], conv_state=conv_state, ssm_state=ssm_state)[0]
        wanted = mixer_forward(mixer, u)[0][:, 7:]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
