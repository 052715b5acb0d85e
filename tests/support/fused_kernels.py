"""Plain stand-ins for the functions of mamba_ssm and causal_conv1d that transformers calls.

Semantics as those packages document them, token by token in float64, with the checks that their Python and C++ make
of types, shapes and strides: what the real ones refuse is a RuntimeError or AssertionError here, and what they compute
without asking (weights that are no matrix, masks they are not given) is computed. They run on any device. Nothing is
copied, and nothing shared with the package under test. Sources read: state-spaces/mamba, mamba_ssm/ops/triton
(ssd_combined.py, selective_state_update.py); Dao-AILab/causal-conv1d, causal_conv1d/causal_conv1d_interface.py and
csrc/causal_conv1d.cpp.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
NO_LIMIT = (0.0, float("inf"))
calls: Counter[str] = Counter()  # of each function, for tests that ask which ones ran


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise RuntimeError(message)


def _check_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    dim, width = weight.shape
    _check(x.dtype in FLOATS and weight.dtype in FLOATS, "causal_conv1d: expected float, half or bfloat16")
    _check(x.dim() == 3 and x.shape[1] == dim, f"causal_conv1d: x must have shape (batch, {dim}, seqlen)")
    _check(2 <= width <= 4, "causal_conv1d only supports width between 2 and 4")
    if bias is not None:
        _check(bias.dtype == weight.dtype, "causal_conv1d: bias must have the type of weight")
        _check(bias.shape == (dim,) and bias.stride(-1) == 1, "causal_conv1d: bias must be contiguous, (dim,)")


def _is_channel_last(x: Tensor) -> bool:
    """As the C++ has it; anything else has to be contiguous along the sequence."""
    return x.stride(1) == 1 and x.stride(2) > 1


def _check_strides(x: Tensor, name: str) -> None:
    _check(
        x.stride(2) % 8 == 0 and x.stride(0) % 8 == 0,
        f"causal_conv1d with channel last layout requires strides ({name}.stride(0) and {name}.stride(2)) to be "
        "multiples of 8",
    )


def _silu(activation: str | None) -> bool:
    if activation not in (None, "silu", "swish"):
        raise NotImplementedError("activation must be None, silu, or swish")
    return activation is not None


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """x: (batch, dim, seqlen), weight: (dim, width), bias: (dim,), seq_idx: (batch, seqlen); returns as x."""
    calls["causal_conv1d_fn"] += 1
    silu = _silu(activation)
    if return_final_states or final_states_out is not None or initial_states is not None:
        raise NotImplementedError("states of causal_conv1d_fn: transformers asks for none")
    if x.stride(2) != 1 and x.stride(1) != 1:
        x = x.contiguous()
    _check_conv(x, weight, bias)
    channel_last = _is_channel_last(x)
    if channel_last:
        _check(x.shape[1] % 8 == 0, "causal_conv1d only supports channel dimension divisible by 8 for now")
        _check_strides(x, "x")
    if seq_idx is not None:
        _check(channel_last, "seq_idx is only supported for channel last layout")
        _check(seq_idx.dtype == torch.int32, "seq_idx must be int32")
        _check(seq_idx.shape == (x.shape[0], x.shape[2]), "seq_idx must have shape (batch, seqlen)")
    wide, taps = x.double(), weight.double()
    y = torch.zeros_like(wide) if bias is None else bias.double()[:, None].expand_as(wide)
    for back in range(min(taps.shape[1], x.shape[2])):
        earlier = F.pad(wide[..., : x.shape[2] - back], (back, 0))
        if seq_idx is not None and back:
            same = F.pad(seq_idx[:, back:] == seq_idx[:, :-back], (back, 0))
            earlier = earlier * same[:, None]
        y = y + taps[:, -1 - back, None] * earlier
    # The kernel's result has the layout of x.
    out = torch.empty_like(x).copy_((F.silu(y) if silu else y).to(x.dtype))
    if out.requires_grad and channel_last:

        def check(gradient: Tensor) -> None:
            if gradient.stride(1) == 1:  # else the C++ makes a copy
                _check_strides(gradient, "dout")

        out.register_hook(check)
    return out


@torch.no_grad()  # there is no backward
def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """x: (batch, dim) or (batch, dim, seqlen), conv_state: (batch, dim, at least width - 1), moved on in place."""
    calls["causal_conv1d_update"] += 1
    silu, flat = _silu(activation), x.dim() == 2
    x = x[..., None] if flat else x
    _check_conv(x, weight, bias)
    _check(conv_state.dtype == x.dtype, "causal_conv1d_update: conv_state must have the type of x")
    _check(conv_state.shape[:2] == x.shape[:2], "causal_conv1d_update: conv_state must have shape (batch, dim, ...)")
    _check(conv_state.shape[2] >= weight.shape[1] - 1, "causal_conv1d_update: conv_state is too short")
    inputs = torch.cat([conv_state, x], -1)
    conv_state.copy_(inputs[..., -conv_state.shape[2] :])
    windows = inputs.double().unfold(2, weight.shape[1], 1)[:, :, -x.shape[2] :]
    y = (windows * weight.double()[:, None]).sum(-1)
    y = y if bias is None else y + bias.double()[:, None]
    out = (F.silu(y) if silu else y).to(x.dtype)
    return out[..., 0] if flat else out


def mamba_chunk_scan_combined(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = NO_LIMIT,
    return_final_states: bool = False,
    return_varlen_states: bool = False,
) -> Any:
    """x: (batch, seqlen, nheads, headdim), dt: (batch, seqlen, nheads), A: (nheads), B and C: (batch, seqlen, ngroups,
    dstate). Returns out, shaped and typed as x, and with return_final_states the states, float32."""
    calls["mamba_chunk_scan_combined"] += 1
    if return_varlen_states:
        raise NotImplementedError("states of each sequence: transformers asks for none")
    batch, seqlen, heads, headdim = x.shape
    groups, dstate = B.shape[-2:]
    assert heads % groups == 0 and chunk_size > 0
    assert B.shape == (batch, seqlen, groups, dstate) == C.shape
    assert dt.shape == (batch, seqlen, heads) and A.shape == (heads,)
    assert z is None or z.shape == x.shape
    assert D is None or D.shape in ((heads,), (heads, headdim))
    assert dt_bias is None or dt_bias.shape == (heads,)
    assert seq_idx is None or seq_idx.shape == (batch, seqlen)
    assert initial_states is None or initial_states.shape == (batch, heads, headdim, dstate)
    _check(all(t.dtype in FLOATS for t in (x, dt, B, C)), "unsupported type")
    steps = dt.double() if dt_bias is None else dt.double() + dt_bias.double()
    steps = (F.softplus(steps) if dt_softplus else steps).clamp(*dt_limit)
    decays = (steps * A.double()).exp()[..., None, None]
    b, c = (t.double().repeat_interleave(heads // groups, 2) for t in (B, C))
    inputs = (steps[..., None] * x.double())[..., None] * b[:, :, :, None]
    h = x.new_zeros(batch, heads, headdim, dstate, dtype=torch.float64)
    h = h if initial_states is None else initial_states.double()
    states = []
    for t in range(seqlen):
        if seq_idx is not None and t:
            h = h * (seq_idx[:, t] == seq_idx[:, t - 1])[:, None, None, None]
        h = decays[:, t] * h + inputs[:, t]
        states.append(h)
    y = torch.einsum("tbhpn,bthn->bthp", torch.stack(states), c)
    if D is not None:
        y = y + x.double() * (D[:, None] if D.dim() == 1 else D).double()
    out = (y if z is None else y * F.silu(z.double())).to(x.dtype)
    return (out, h.float()) if return_final_states else out


@torch.no_grad()  # there is no backward
def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: Tensor | None = None,
) -> Tensor:
    """state: (batch, nheads, dim, dstate), moved on in place; x and dt: (batch, nheads, dim), A: (nheads, dim, dstate),
    B and C: (batch, ngroups, dstate), D and dt_bias: (nheads, dim). Knows no limit of dt."""
    calls["selective_state_update"] += 1
    _, heads, dim, dstate = state.shape
    batch, groups = len(x), B.shape[1]
    assert x.shape == dt.shape == (batch, heads, dim) and A.shape == (heads, dim, dstate)
    assert heads % groups == 0, "nheads must be divisible by ngroups"
    assert B.shape == C.shape == (batch, groups, dstate)
    assert D is None or D.shape == (heads, dim)
    assert dt_bias is not None and dt_bias.shape == (heads, dim)  # without one the launcher raises
    assert z is None and state_batch_indices is None
    steps = dt.double() + dt_bias.double()
    steps = F.softplus(steps) if dt_softplus else steps
    b, c = (t.double().repeat_interleave(heads // groups, 1)[:, :, None] for t in (B, C))
    new = state.double() * (steps[..., None] * A.double()).exp() + (steps * x.double())[..., None] * b
    state.copy_(new)
    y = (new * c).sum(-1)
    return (y if D is None else y + x.double() * D.double()).to(x.dtype)


def mamba_split_conv1d_scan_combined(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    chunk_size: int,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    dt_limit: tuple[float, float] = NO_LIMIT,
    return_final_states: bool = False,
    activation: str = "silu",
    rmsnorm_weight: Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: Tensor | None = None,
    outproj_bias: Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
) -> Any:
    """A whole mixer after its in_proj: zxbcdt (batch, seqlen, 2 * nheads * headdim + 2 * ngroups * dstate + nheads)."""
    calls["mamba_split_conv1d_scan_combined"] += 1
    assert activation in (None, "silu", "swish") and D.dim() == 1 and headdim is not None
    assert not norm_before_gate and rmsnorm_weight is not None  # as Zamba2 asks
    (heads,), size = D.shape, zxbcdt.shape[-1]
    inner = heads * headdim
    assert heads % ngroups == 0
    dstate = (len(conv1d_weight) - inner) // ngroups // 2
    assert size == 2 * inner + 2 * ngroups * dstate + heads
    assert dt_bias.shape == (heads,) and A.shape == (heads,)
    z, xbc, dt = zxbcdt.split([inner, inner + 2 * ngroups * dstate, heads], -1)
    seq_idx = None if seq_idx is None else seq_idx.contiguous()
    convolved = causal_conv1d_fn(xbc.mT, conv1d_weight, conv1d_bias, seq_idx, activation=activation).mT
    x, b, c = convolved.split([inner, ngroups * dstate, ngroups * dstate], -1)
    y, states = mamba_chunk_scan_combined(
        x.unflatten(-1, (heads, headdim)),
        dt,
        A,
        b.unflatten(-1, (ngroups, dstate)),
        c.unflatten(-1, (ngroups, dstate)),
        chunk_size,
        D,
        dt_bias=dt_bias,
        initial_states=initial_states,
        seq_idx=seq_idx,
        dt_softplus=True,
        dt_limit=dt_limit,
        return_final_states=True,
    )
    gated = (y.flatten(2).double() * F.silu(z.double())).unflatten(-1, (ngroups, -1))
    normed = gated * (gated.square().mean(-1, keepdim=True) + rmsnorm_eps).rsqrt()
    out = (normed.flatten(2) * rmsnorm_weight.double()).to(zxbcdt.dtype)
    if outproj_weight is not None:
        if torch.is_autocast_enabled(zxbcdt.device.type):
            dtype = torch.get_autocast_dtype(zxbcdt.device.type)
            out, outproj_weight = out.to(dtype), outproj_weight.to(dtype)
            outproj_bias = None if outproj_bias is None else outproj_bias.to(dtype)
        with torch.autocast(zxbcdt.device.type, enabled=False):
            out = F.linear(out, outproj_weight, outproj_bias)
    return (out, states) if return_final_states else out


CONV = (causal_conv1d_fn, causal_conv1d_update)
SSM = (mamba_chunk_scan_combined, mamba_split_conv1d_scan_combined, selective_state_update)


def _modules() -> dict[str, ModuleType]:
    """The packages as far as transformers looks into them."""
    names = ("causal_conv1d", "mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton")
    leaves = ("mamba_ssm.ops.triton.ssd_combined", "mamba_ssm.ops.triton.selective_state_update")
    made = {name: ModuleType(name) for name in names + leaves}
    for name, module in made.items():
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(made[parent], last, module)
        functions = CONV if name == "causal_conv1d" else SSM if name in leaves else ()
        for function in functions:
            setattr(module, function.__name__, function)
    return made


@contextmanager
def in_use(functions: dict[str, Any] | None = None, *, stock: bool = False) -> Iterator[None]:
    """Within it, transformers' Zamba2 has the kernels, and takes CPU tensors for its own kind of device's.

    functions: other functions under the names of those above, such as the real ones. stock: without zamba_compat.
    Without that or its adapter, releases that ask for the device are sent to the method that calls the kernels.
    Models have to be built before: some releases look for kernels whenever a mixer is made.
    """
    from transformers.models.zamba2 import modeling_zamba2 as modeling

    found = {function.__name__: function for function in CONV + SSM} | (functions or {})
    mixer, undo = modeling.Zamba2MambaMixer, []

    def put(owner: Any, name: str, value: Any) -> None:
        undo.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    try:
        if hasattr(modeling, "is_fast_path_available"):
            for name, function in found.items():
                put(modeling, name, function)
            put(modeling, "is_fast_path_available", True)
        else:
            _redecorate(modeling, found, put)
        if not _is_ours(mixer.forward):
            put(mixer, "forward", _own(mixer))
        if not stock:
            from zamba_compat.mamba2 import fused

            put(fused, "on_accelerator", lambda x: x.device.type != "meta")
        yield
    finally:
        for owner, name, value in reversed(undo):
            setattr(owner, name, value)


def _is_ours(forward: Any) -> bool:
    """Whether the adapter of the fused path is in place."""
    return bool(getattr(forward, "calls_out_proj", False))


def _own(mixer: Any) -> Any:
    """The release's own forward on its own kind of device, below whatever was put in its place."""
    if hasattr(mixer, "cuda_kernels_forward"):

        def forward(self: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
            given = dict(zip(("cache_params", "attention_mask"), args, strict=False)) | kwargs
            return mixer.cuda_kernels_forward(
                self, hidden_states, given.get("cache_params"), given.get("attention_mask")
            )

        return forward
    return below(mixer.forward)


def below(function: Any) -> Any:
    """A release's own function, below the adapters' replacements, each of which keeps it as its `original`."""
    while "original" in function.__code__.co_freevars:
        cells = dict(zip(function.__code__.co_freevars, function.__closure__, strict=True))
        function = cells["original"].cell_contents
    return function


def _redecorate(modeling: Any, found: dict[str, Any], put: Any) -> None:
    """Let the release's own decorator find the packages, which it does once, when a function is defined."""
    from transformers.integrations.hub_kernels import use_kernel_func_from_hub_with_fallback as decorated

    names = {name: name for name in ("causal_conv1d_fn", "causal_conv1d_update", "selective_state_update")}
    names |= {name: name for name in ("mamba_chunk_scan_combined", "mamba_split_conv1d_scan_combined")}
    own = {
        "mamba_chunk_scan_combined": "mamba2_chunk_scan",
        "mamba_split_conv1d_scan_combined": "mamba2_split_conv1d_scan_combined",
        "selective_state_update": "mamba2_selective_state_update",
    }
    modules = _modules()
    for module in modules.values():
        for name in found:
            if hasattr(module, name) and not isinstance(getattr(module, name), ModuleType):
                setattr(module, name, found[name])
    held = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        for name in names:
            package = "causal_conv1d" if name.startswith("causal") else "mamba_ssm"
            fallback = getattr(modeling, own.get(name, name)).__wrapped__
            put(modeling, own.get(name, name), decorated(name, package)(fallback))
    finally:
        for name, module in held.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
