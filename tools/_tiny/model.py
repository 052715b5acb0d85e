"""Zamba2 in plain PyTorch for training: float32, whole sequences, no cache, keys named as transformers names them.

A shared block is one module, registered at its canonical layer, so state_dict() is the hub layout. Which block
and which adapter a position runs is an argument of forward (a Wiring), so that mis-tied models can be measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .shape import Shape
from .ssd import causal_conv, ssd_scan


@dataclass(frozen=True)
class Wiring:
    """blocks[p] is the block and adapters[p] the adapter that hybrid position p runs."""

    blocks: tuple[int, ...]
    adapters: tuple[int, ...]

    @classmethod
    def correct(cls, shape: Shape) -> Wiring:
        """The rule the architecture defines: block p % num_mem_blocks, adapter p."""
        positions = range(len(shape.hybrid_layer_ids))
        return cls(tuple(shape.block_at(p) for p in positions), tuple(positions))


class RMSNorm(nn.Module):
    """x / rms(x) * weight over groups of size width // groups; with a gate, x * silu(gate) first."""

    def __init__(self, width: int, eps: float, groups: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps, self.groups = eps, groups

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        if gate is not None:
            x = x * F.silu(gate)
        if self.groups == 1:
            return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)
        size = x.shape[-1] // self.groups
        return F.rms_norm(x.unflatten(-1, (self.groups, size)), (size,), None, self.eps).flatten(-2) * self.weight


class Mixer(nn.Module):
    """The Mamba2 mixer with dt = softplus(dt + dt_bias), unclamped."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.shape = s
        self.in_proj = nn.Linear(s.hidden_size, s.in_proj_rows, bias=False)
        self.conv1d = nn.Conv1d(s.conv_width, s.conv_width, s.mamba_d_conv, groups=s.conv_width)
        span = math.log(s.time_step_max) - math.log(s.time_step_min)
        dt = torch.exp(torch.rand(s.n_mamba_heads) * span + math.log(s.time_step_min))
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # softplus of it is dt
        self.A_log = nn.Parameter(torch.log(torch.empty(s.n_mamba_heads).uniform_(1, 16)))
        self.D = nn.Parameter(torch.ones(s.n_mamba_heads))
        self.norm = RMSNorm(s.mamba_width, 1e-5, s.mamba_ngroups)
        self.out_proj = nn.Linear(s.mamba_width, s.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        s = self.shape
        gate, xbc, dt = self.in_proj(hidden).split([s.mamba_width, s.conv_width, s.n_mamba_heads], dim=-1)
        xbc = F.silu(causal_conv(xbc, self.conv1d.weight, self.conv1d.bias))
        bc = s.mamba_ngroups * s.mamba_d_state
        x, b, c = xbc.split([s.mamba_width, bc, bc], dim=-1)
        y = ssd_scan(
            x.unflatten(-1, (s.n_mamba_heads, -1)),
            F.softplus(dt + self.dt_bias),
            -torch.exp(self.A_log),
            b.unflatten(-1, (s.mamba_ngroups, -1)),
            c.unflatten(-1, (s.mamba_ngroups, -1)),
            self.D,
        )
        return self.out_proj(self.norm(y.flatten(-2), gate))


class MambaLayer(nn.Module):
    """Norm, mixer and residual; what a shared block made joins the mixer's input but not the residual."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.mamba = Mixer(s)
        self.input_layernorm = RMSNorm(s.hidden_size, s.rms_norm_eps)

    def forward(self, hidden: Tensor, extra: Tensor | None = None) -> Tensor:
        return hidden + self.mamba(self.input_layernorm(hidden if extra is None else hidden + extra))


class Attention(nn.Module):
    """Causal rotary attention on twice the hidden size, scaled by (head_dim / 2) ** -0.5."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        wide = s.attention_width
        self.heads = s.num_attention_heads
        self.scale = (s.attention_head_dim / 2) ** -0.5
        self.q_proj = nn.Linear(wide, wide, bias=False)
        self.k_proj = nn.Linear(wide, wide, bias=False)
        self.v_proj = nn.Linear(wide, wide, bias=False)
        self.o_proj = nn.Linear(wide, s.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (
            f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = (t * cos + torch.cat(t.chunk(2, -1)[::-1], -1) * sin for t in (q, k))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        return self.o_proj(y.transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    """Gated GELU MLP; the adapters it owns sit under their positions' numbers, others' slots stay empty."""

    def __init__(self, s: Shape, positions: list[int]) -> None:
        super().__init__()
        wide = 2 * s.intermediate_size
        self.gate_up_proj = nn.Linear(s.hidden_size, wide, bias=False)
        self.down_proj = nn.Linear(s.intermediate_size, s.hidden_size, bias=False)
        self.gate_up_proj_adapter_list = nn.ModuleDict(
            {
                str(p): nn.Sequential(
                    nn.Linear(s.hidden_size, s.adapter_rank, bias=False),
                    nn.Linear(s.adapter_rank, wide, bias=False),
                )
                for p in positions
            }
        )

    def forward(self, x: Tensor, adapter: nn.Module) -> Tensor:
        gate, up = (self.gate_up_proj(x) + adapter(x)).chunk(2, dim=-1)
        return self.down_proj(F.gelu(gate) * up)


class SharedBlock(nn.Module):
    """Attention on the hidden state beside the embedding, then the MLP; no residual inside."""

    def __init__(self, s: Shape, positions: list[int]) -> None:
        super().__init__()
        self.self_attn = Attention(s)
        self.feed_forward = FeedForward(s, positions)
        self.input_layernorm = RMSNorm(s.attention_width, s.rms_norm_eps)
        self.pre_ff_layernorm = RMSNorm(s.hidden_size, s.rms_norm_eps)

    def forward(self, hidden: Tensor, embedded: Tensor, adapter: nn.Module, cos: Tensor, sin: Tensor) -> Tensor:
        x = self.self_attn(self.input_layernorm(torch.cat([hidden, embedded], -1)), cos, sin)
        return self.feed_forward(self.pre_ff_layernorm(x), adapter)


class HybridLayer(nn.Module):
    """A Mamba layer fed by a shared block; only the canonical layer holds the block's parameters."""

    def __init__(self, s: Shape, block: SharedBlock | None) -> None:
        super().__init__()
        if block is not None:
            self.shared_transformer = block
        self.linear = nn.Linear(s.hidden_size, s.hidden_size, bias=False)
        self.mamba_decoder = MambaLayer(s)


class Backbone(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.shape = s
        positions = range(len(s.hybrid_layer_ids))
        owned = [[p for p in positions if s.block_at(p) == b] for b in range(s.num_mem_blocks)]
        blocks = [SharedBlock(s, o) for o in owned]
        first_use = {s.hybrid_layer_ids[o[0]]: block for o, block in zip(owned, blocks, strict=True)}
        self.embed_tokens = nn.Embedding(s.vocab_size, s.hidden_size)
        self.layers = nn.ModuleList(
            HybridLayer(s, first_use.get(i)) if i in s.hybrid_layer_ids else MambaLayer(s)
            for i in range(s.num_hidden_layers)
        )
        self.final_layernorm = RMSNorm(s.hidden_size, s.rms_norm_eps)
        # Plain tuple: a second registration would repeat the block's keys.
        self.blocks = tuple(blocks)

    def adapter(self, position: int) -> nn.Module:
        """The adapter of a position, wherever it is stored."""
        block = self.blocks[self.shape.block_at(position)]
        return block.feed_forward.gate_up_proj_adapter_list[str(position)]

    def rotary(self, length: int) -> tuple[Tensor, Tensor]:
        """cos and signed sin, (length, head_dim); the sign of rotate_half is folded into sin."""
        dim = self.shape.attention_head_dim
        frequency = self.shape.rope_theta ** (-torch.arange(0, dim, 2).double() / dim)
        angle = torch.outer(torch.arange(length).double(), frequency)
        sin = angle.sin()
        return angle.cos().repeat(1, 2).float(), torch.cat([-sin, sin], -1).float()

    def forward(self, ids: Tensor, wiring: Wiring) -> Tensor:
        hidden = embedded = self.embed_tokens(ids)
        cos, sin = self.rotary(ids.shape[1])
        position = 0
        for layer in self.layers:
            if isinstance(layer, HybridLayer):
                block = self.blocks[wiring.blocks[position]]
                adapter = self.adapter(wiring.adapters[position])
                extra = layer.linear(block(hidden, embedded, adapter, cos, sin))
                hidden = layer.mamba_decoder(hidden, extra)
                position += 1
            else:
                hidden = layer(hidden)
        return self.final_layernorm(hidden)


class TinyZamba2(nn.Module):
    """Backbone and tied output head."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Backbone(shape)
        self.wiring = Wiring.correct(shape)
        self.reset()

    def forward(self, ids: Tensor, wiring: Wiring | None = None) -> Tensor:
        """(batch, length) token ids to (batch, length, vocab_size) logits."""
        return F.linear(self.model(ids, wiring or self.wiring), self.model.embed_tokens.weight)

    @torch.no_grad()
    def reset(self) -> None:
        """Draw every matrix anew: normal, 1 / sqrt(fan-in), the last of each branch smaller."""
        shrink = (2 * self.shape.num_hidden_layers) ** -0.5
        for name, p in self.named_parameters():
            if name.endswith("embed_tokens.weight"):
                p.normal_(std=0.05)
            elif p.dim() == 2:
                scale = shrink if name.endswith("out_proj.weight") else 1.0
                p.normal_(std=scale * p.shape[1] ** -0.5)
