"""The forward pass of Zamba2 and Zamba (v1) from first principles, to judge every other implementation by.

Plain PyTorch, float64 unless asked otherwise, one row and one token at a time where the definition is a
recurrence. Nothing here is shared with the package under test or with transformers.

Sources:
- arXiv 2411.15242 (Zamba2), figure 2: shared blocks in alternation, adapters, rotary embedding;
- arXiv 2405.16712 (Zamba), equation 6: what the shared block adds goes into the Mamba layer's input only;
- arXiv 2405.21060 (Mamba2), sections 3 and 7: the recurrence, grouped B and C, the gated norm;
- arXiv 2312.00752 (Mamba), section 3.2: the v1 mixer, in which every channel has a step and every pair of
  channel and state a decay of its own.

Three rules that releases of transformers disagree on, decided by the code the models were trained with
(repositories Zyphra/Zamba2 and Zyphra/transformers_zamba2):
- dt is not clamped: `Mamba2Layer` has dt_limit=(0, inf), and its single-token step knows no limit at all.
  time_step_min only draws the initial dt_bias. A `time_step_limit` that is not null is applied.
- use_long_context multiplies the rotary base once by 8 ** (d / (d - 2)), d the attention head dimension, when
  the rotary embedding is built; the `rope_theta` in the config stays the unscaled one.
- attention scores are divided by sqrt(d / 2), since d is doubled by the concatenated input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MIXER_NORM_EPS = 1e-5  # fixed in Mamba2; rms_norm_eps is for the other norms

State = Mapping[str, Tensor]
Config = Mapping[str, Any]


class MambaState(NamedTuple):
    """What one Mamba layer carries to the next token.

    conv: [conv_dim, d_conv], the last inputs of the convolution, oldest first, zeros before the first token.
    ssm:  [heads, head_dim, d_state].
    """

    conv: Tensor
    ssm: Tensor


def forward(
    state: State,
    config: Config,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Logits of every token, [batch, seq, vocab] in `dtype`.

    state: tensors under the keys of transformers' layout. Where a block is stored several times, the copy at
    the first layer that uses it counts.
    config: the content of config.json. The head is the embedding, unless the config says otherwise
    (tie_word_embeddings) and the checkpoint holds an lm_head.
    input_ids: [batch, seq]; attention_mask: [batch, seq], 0 for padding on either side. A padded row is run
    without its padding, and the logits of padding are NaN so that no comparison can use them by accident.
    Raises KeyError when a tensor or an obligatory config entry is missing.
    """
    return forward_with_states(state, config, input_ids, attention_mask, dtype)[0]


def forward_with_states(
    state: State,
    config: Config,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, list[list[MambaState]]]:
    """As `forward`, with the final Mamba states: one list per row, one entry per layer."""
    keep = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    logits = torch.full((*input_ids.shape, config["vocab_size"]), torch.nan, dtype=dtype)
    states = []
    for row, (ids, kept) in enumerate(zip(input_ids, keep.bool(), strict=True)):
        logits[row, kept], layer_states = _row(_Weights(state, "", dtype), config, ids[kept])
        states.append(layer_states)
    return logits, states


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over largest absolute expected value, without padding (NaN in `expected`).

    Infinite when `actual` has NaN at a place that counts.
    """
    if actual.shape != expected.shape:
        raise ValueError(f"shapes differ: {tuple(actual.shape)} and {tuple(expected.shape)}")
    counts = ~expected.isnan()
    wanted = expected[counts].double()
    difference = (actual.detach()[counts].double() - wanted).abs().max() / wanted.abs().max()
    return float("inf") if difference.isnan() else difference.item()


def hybrid_layers(config: Config) -> list[int]:
    """Layers that run a shared block, in depth order: the layer at index p of this list is position p."""
    return [layer for layer, kind in enumerate(layer_kinds(config)) if kind == "hybrid"]


def layer_kinds(config: Config) -> Sequence[str]:
    """For every layer "hybrid" or something else; v1 configs may give a period and an offset instead."""
    kinds: Sequence[str] | None = config.get("layers_block_type") or config.get("layer_types")
    if kinds is None and config["model_type"] == "zamba":
        period, offset = config.get("attn_layer_period", 6), config.get("attn_layer_offset", 4)
        rest = range(config["num_hidden_layers"] - 3)
        kinds = ["mamba", "mamba", "hybrid", *("hybrid" if i % period == offset else "mamba" for i in rest)]
    if kinds is None:
        raise KeyError("layers_block_type")
    return kinds


class _Weights:
    """The tensors below a prefix, in the precision of the run."""

    def __init__(self, state: State, prefix: str, dtype: torch.dtype) -> None:
        self.state, self.prefix, self.dtype = state, prefix, dtype

    def at(self, name: str) -> _Weights:
        return _Weights(self.state, f"{self.prefix}{name}.", self.dtype)

    def __getitem__(self, name: str) -> Tensor:
        return self.state[self.prefix + name].to(self.dtype)

    def linear(self, name: str, x: Tensor) -> Tensor:
        """x W^T, plus the bias where the checkpoint has one (add_bias_linear)."""
        return x @ self[f"{name}.weight"].T + self.bias(name)

    def bias(self, name: str) -> Tensor:
        """Zero where the checkpoint has none."""
        present = f"{self.prefix}{name}.bias" in self.state
        return self[f"{name}.bias"] if present else torch.zeros((), dtype=self.dtype)

    def adapter(self, name: str, position: int, x: Tensor) -> Tensor:
        """The low-rank pair of one position."""
        return self.linear(f"{name}.{position}.1", self.linear(f"{name}.{position}.0", x))


def _row(weights: _Weights, config: Config, ids: Tensor) -> tuple[Tensor, list[MambaState]]:
    """One unpadded row. ids: [seq]. Returns logits [seq, vocab] and the states of all layers."""
    v1 = config["model_type"] == "zamba"
    block_name = "shared_transf" if v1 else "shared_transformer"
    mixer = _mamba1 if v1 else _mamba2
    blocks = 1 if v1 else config["num_mem_blocks"]
    hybrid = hybrid_layers(config)
    eps = config.get("rms_norm_eps", 1e-5)

    embedding = weights["model.embed_tokens.weight"]
    hidden = embedded = embedding[ids]
    states = []
    for layer in range(config["num_hidden_layers"]):
        here = weights.at(f"model.layers.{layer}")
        mixer_input = hidden
        if layer in hybrid:
            position = hybrid.index(layer)
            canonical = hybrid[position % blocks]
            block = weights.at(f"model.layers.{canonical}.{block_name}")
            mixer_input = hidden + here.linear("linear", _block(block, config, hidden, embedded, position))
            here = here.at("mamba_decoder")
        mixed, layer_state = mixer(
            here.at("mamba"), config, _rms_norm(mixer_input, here["input_layernorm.weight"], eps)
        )
        hidden = hidden + mixed
        states.append(layer_state)
    hidden = _rms_norm(hidden, weights["model.final_layernorm.weight"], eps)
    untied = not config.get("tie_word_embeddings", True) and "lm_head.weight" in weights.state
    return hidden @ (weights["lm_head.weight"] if untied else embedding).T, states


def _unit(x: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * _unit(x, eps)


def _block(weights: _Weights, config: Config, hidden: Tensor, embedded: Tensor, position: int) -> Tensor:
    """A shared block: attention over [hidden, embedded], then a gated MLP, with no residual inside."""
    eps = config.get("rms_norm_eps", 1e-5)
    both = _rms_norm(torch.cat([hidden, embedded], -1), weights["input_layernorm.weight"], eps)
    attended = _attention(weights.at("self_attn"), config, both, position)
    x = _rms_norm(attended, weights["pre_ff_layernorm.weight"], eps)
    mlp = weights.at("feed_forward")
    if config["model_type"] == "zamba":
        gate, up = mlp.linear("gate_proj", x), mlp.linear("up_proj", x)
    else:
        gate_up = mlp.linear("gate_up_proj", x) + mlp.adapter("gate_up_proj_adapter_list", position, x)
        gate, up = gate_up.chunk(2, -1)
    activation = F.silu if config.get("hidden_act") == "silu" else F.gelu
    return mlp.linear("down_proj", activation(gate) * up)


def _attention(weights: _Weights, config: Config, x: Tensor, position: int) -> Tensor:
    """Causal attention over x [seq, 2 * hidden_size]; returns [seq, hidden_size]."""
    heads = config["num_attention_heads"]
    key_heads = config.get("num_key_value_heads") or heads
    head_dim = x.shape[-1] // heads
    q, k, v = (weights.linear(f"{name}_proj", x) for name in "qkv")
    if config.get("use_shared_attention_adapter"):
        q, k, v = (
            projected + weights.adapter(f"linear_{name}_adapter_list", position, x)
            for name, projected in zip("qkv", (q, k, v), strict=True)
        )
    q = q.unflatten(-1, (heads, head_dim))
    k, v = (y.unflatten(-1, (key_heads, head_dim)) for y in (k, v))
    if config.get("use_mem_rope"):
        angles = _rotary_angles(config, len(x), head_dim, x.dtype)
        q, k = _rotate(q, angles), _rotate(k, angles)
    k, v = (y.repeat_interleave(heads // key_heads, 1) for y in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) / (head_dim / 2) ** 0.5
    future = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
    mixed = torch.einsum("hqk,khd->qhd", scores.masked_fill(future, -torch.inf).softmax(-1), v)
    return weights.linear("o_proj", mixed.flatten(1))


def rope_theta(config: Config, head_dim: int) -> float:
    """The base of the rotary frequencies, rescaled once for use_long_context."""
    theta = (config.get("rope_parameters") or config).get("rope_theta", 10000)
    return float(theta * 8 ** (head_dim / (head_dim - 2)) if config.get("use_long_context") else theta)


def _rotary_angles(config: Config, length: int, head_dim: int, dtype: torch.dtype) -> Tensor:
    """[length, head_dim / 2], in radians."""
    exponents = torch.arange(0, head_dim, 2, dtype=dtype) / head_dim
    return torch.arange(length, dtype=dtype)[:, None] / rope_theta(config, head_dim) ** exponents


def _rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn the pairs (x_i, x_{i + d/2}) of x [seq, heads, d]."""
    first, second = x.chunk(2, -1)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def _mamba2(weights: _Weights, config: Config, u: Tensor) -> tuple[Tensor, MambaState]:
    """The Mamba2 mixer on u [seq, hidden_size]."""
    heads, groups, d_state = config["n_mamba_heads"], config.get("mamba_ngroups", 1), config["mamba_d_state"]
    inner = config["mamba_expand"] * config["hidden_size"]
    gate, xbc, dt = weights.linear("in_proj", u).split([inner, inner + 2 * groups * d_state, heads], -1)
    xbc, conv_state = _causal_conv(weights, xbc)
    x, b, c = F.silu(xbc).split([inner, groups * d_state, groups * d_state], -1)
    # Head h reads group h // (heads / groups).
    b, c = (y.unflatten(-1, (groups, d_state)).repeat_interleave(heads // groups, 1) for y in (b, c))
    dt = F.softplus(dt + weights["dt_bias"])
    if config.get("time_step_limit") is not None:
        dt = dt.clamp(*config["time_step_limit"])
    decay = -weights["A_log"].exp()[:, None, None]
    y, ssm_state = selective_scan(x.unflatten(-1, (heads, -1)), dt[..., None], decay, b, c, weights["D"][:, None])
    gated = (y.flatten(1) * F.silu(gate)).unflatten(-1, (groups, -1))
    normed = weights["norm.weight"] * _unit(gated, MIXER_NORM_EPS).flatten(1)
    return weights.linear("out_proj", normed), MambaState(conv_state, ssm_state)


def _mamba1(weights: _Weights, config: Config, u: Tensor) -> tuple[Tensor, MambaState]:
    """The Mamba mixer of Zamba (v1) on u [seq, hidden_size]: heads share nothing but the projections."""
    heads, d_state = config["n_mamba_heads"], config["mamba_d_state"]
    rank = weights["dt_proj_weight"].shape[-1]
    # Rows of in_proj alternate between the sequence and its gate.
    x, gate = weights.linear("in_proj", u).unflatten(-1, (-1, 2)).unbind(-1)
    x, conv_state = _causal_conv(weights, x)
    x = F.silu(x).unflatten(-1, (heads, -1))
    dt, b, c = torch.einsum("hrp,thp->thr", weights["x_proj_weight"], x).split([rank, d_state, d_state], -1)
    dt = F.softplus(torch.einsum("hpr,thr->thp", weights["dt_proj_weight"], dt) + weights["dt_proj_bias"])
    y, ssm_state = selective_scan(x, dt, -weights["A_log"].exp(), b, c, weights["D"])
    return weights.linear("out_proj", y.flatten(1) * F.silu(gate)), MambaState(conv_state, ssm_state)


def _causal_conv(weights: _Weights, x: Tensor) -> tuple[Tensor, Tensor]:
    """Depthwise: y_t = bias + sum_k w_k x_{t - (taps - 1) + k}, zeros before the start. x: [seq, channels].

    Returns y and the last inputs, [channels, taps].
    """
    taps = weights["conv1d.weight"][:, 0].T
    padded = torch.cat([x.new_zeros(len(taps), x.shape[-1]), x])
    y = sum(tap * padded[k + 1 : k + 1 + len(x)] for k, tap in enumerate(taps))
    return y + weights.bias("conv1d"), padded[-len(taps) :].T


def selective_scan(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """h_t = exp(dt_t a) h_{t-1} + dt_t x_t b_t^T and y_t = h_t c_t + d x_t, token by token.

    x: [seq, heads, head_dim]; b, c: [seq, heads, d_state]; h: [heads, head_dim, d_state]. dt, a and d
    broadcast: per head in Mamba2, per channel (and per state, for a) in Mamba.
    Returns y, shaped as x, and the last h.
    """
    decays = torch.exp(dt[..., None] * a)
    inputs = (dt * x)[..., None] * b[:, :, None]
    h = torch.zeros_like(inputs[0])
    states = []
    for decay, new in zip(decays, inputs, strict=True):
        h = decay * h + new
        states.append(h)
    return torch.einsum("thpn,thn->thp", torch.stack(states), c) + d * x, h
