"""The layers of Zamba2 one at a time, from tensors that are read by name: a forward pass without a model.

Everything is computed in float32. Sources: arXiv 2411.15242 (shared blocks, adapters), arXiv 2405.21060 (the mixer).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from zamba_compat.layout.sharing import Position, SharingMap

if TYPE_CHECKING:
    from torch import Tensor

Read = Callable[[str], "Tensor"]
Watch = Callable[[Sequence[str], "Tensor"], None]  # the names of linear weights, and the input they all get

_MIXER_EPS = 1e-5  # fixed in Mamba2; rms_norm_eps is for the other norms


class Module:
    """The tensors under one name, each read when it is first asked for and kept while this object is.

    Attributes:
        watch: told of the input of every linear.
    """

    def __init__(self, read: Read, prefix: str, watch: Watch | None = None) -> None:
        self._read, self.prefix, self.watch = read, prefix, watch
        self._known: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        """A tensor in float32. KeyError where nothing of this name is stored."""
        if name not in self._known:
            self._known[name] = self._read(f"{self.prefix}{name}").float()
        return self._known[name]

    def put(self, name: str, tensor: Tensor) -> None:
        """Have other values from here on."""
        self._known[name] = tensor.float()

    def linear(self, x: Tensor, *names: str, bias: bool = False) -> list[Tensor]:
        """What several linears make of one input."""
        import torch.nn.functional as F

        if self.watch is not None:
            self.watch([f"{self.prefix}{name}.weight" for name in names], x)
        return [F.linear(x, self[f"{name}.weight"], self[f"{name}.bias"] if bias else None) for name in names]


class Layers:
    """A Zamba2 model's layers.

    Attributes:
        config: config.json in the classic dialect, complete.
        sharing: its sharing map.
        prefix: "model." or "".
        read: a tensor by its name in the hub layout.
    """

    def __init__(self, config: Mapping[str, Any], sharing: SharingMap, prefix: str, read: Read) -> None:
        self.config, self.sharing, self.prefix, self.read = config, sharing, prefix, read
        self._positions = {position.layer: position for position in sharing.positions}

    def position(self, layer: int) -> Position | None:
        """The position of a layer; None for one without a shared block."""
        return self._positions.get(layer)

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [tokens] -> [tokens, hidden_size]."""
        return self.read(f"{self.prefix}embed_tokens.weight")[ids].float()

    def layer(self, index: int, watch: Watch | None = None) -> Module:
        """What belongs to a layer alone."""
        return Module(self.read, f"{self.prefix}layers.{index}.", watch)

    def mixer(self, index: int, watch: Watch | None = None) -> Module:
        """A layer's Mamba half: input_layernorm and mamba."""
        inner = "mamba_decoder." if index in self.sharing.hybrid_layers else ""
        return Module(self.read, f"{self.prefix}layers.{index}.{inner}", watch)

    def block(self, index: int, watch: Watch | None = None) -> Module:
        """A shared block."""
        canonical = self.sharing.canonical_layer(index)
        return Module(self.read, f"{self.prefix}layers.{canonical}.{self.sharing.stem}.", watch)

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return weight * _unit(x, self.config.get("rms_norm_eps", 1e-5))

    def run_block(self, block: Module, position: int, hidden: Tensor, embedded: Tensor) -> Tensor:
        """A shared block at a position: [tokens, hidden_size] -> the same, causal over the tokens."""
        import torch
        import torch.nn.functional as F

        bias = self.sharing.linear_bias
        x = self.norm(torch.cat([hidden, embedded], -1), block["input_layernorm.weight"])
        (attended,) = block.linear(self._attend(block, position, x), "self_attn.o_proj")
        x = self.norm(attended, block["pre_ff_layernorm.weight"])
        (gate_up,) = block.linear(x, "feed_forward.gate_up_proj", bias=bias)
        gate_up = gate_up + _adapted(block, [f"feed_forward.gate_up_proj_adapter_list.{position}"], x)[0]
        gate, up = gate_up.chunk(2, -1)
        activation = F.silu if self.config.get("hidden_act") == "silu" else F.gelu
        (out,) = block.linear(activation(gate) * up, "feed_forward.down_proj", bias=bias)
        return out

    def between(self, mixer: Module, projected: Tensor) -> Tensor:
        """What a mixer does between in_proj and out_proj: [tokens, rows of in_proj] -> [tokens, inner channels]."""
        import torch.nn.functional as F

        from zamba_compat.mamba2.recurrence import causal_conv, scan

        config = self.config
        heads, groups = config["n_mamba_heads"], config["mamba_ngroups"]
        inner, d_state = config["mamba_expand"] * config["hidden_size"], config["mamba_d_state"]
        whole: Any = projected[None]
        gate, xbc, dt = whole.split([inner, inner + 2 * groups * d_state, heads], -1)
        convolved: Any = F.silu(causal_conv(xbc, mixer["mamba.conv1d.weight"], mixer["mamba.conv1d.bias"])[0])
        x, b, c = convolved.split([inner, groups * d_state, groups * d_state], -1)
        dt = F.softplus(dt + mixer["mamba.dt_bias"])
        if config.get("time_step_limit") is not None:
            dt = dt.clamp(*config["time_step_limit"])
        x, b, c = (part.unflatten(-1, (many, -1)) for part, many in ((x, heads), (b, groups), (c, groups)))
        y, _ = scan(x, dt, -mixer["mamba.A_log"].exp(), b, c, D=mixer["mamba.D"])
        gated: Any = y.flatten(2) * F.silu(gate)
        gated = gated.unflatten(-1, (groups, -1))
        return mixer["mamba.norm.weight"] * _unit(gated, _MIXER_EPS).flatten(2)[0]

    def _attend(self, block: Module, position: int, x: Tensor) -> Tensor:
        import torch.nn.functional as F

        config = self.config
        heads, key_heads = config["num_attention_heads"], config["num_key_value_heads"]
        projected: Any = block.linear(x, *(f"self_attn.{name}_proj" for name in "qkv"))
        q, k, v = projected
        if self.sharing.attention_adapters:
            names = [f"self_attn.linear_{name}_adapter_list.{position}" for name in "qkv"]
            q, k, v = (one + more for one, more in zip((q, k, v), _adapted(block, names, x), strict=True))
        head_dim = q.shape[-1] // heads
        many = heads, key_heads, key_heads
        q, k, v = (y.unflatten(-1, (n, -1)).transpose(0, 1) for y, n in zip((q, k, v), many, strict=True))
        if config.get("use_mem_rope"):
            q, k = (self._rotated(y, head_dim) for y in (q, k))
        k, v = (y.repeat_interleave(heads // key_heads, 0) for y in (k, v))
        # The input is two concatenated, so the scores are scaled by half its dimension.
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=(head_dim / 2) ** -0.5)
        return mixed.transpose(0, 1).flatten(1)

    def _rotated(self, x: Tensor, head_dim: int) -> Tensor:
        """x [heads, tokens, head_dim], the pairs (i, i + head_dim / 2) turned."""
        import torch

        config = self.config
        theta = (config.get("rope_parameters") or config).get("rope_theta", 10000)
        if config.get("use_long_context"):
            theta = theta * 8 ** (head_dim / (head_dim - 2))
        frequencies = float(theta) ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        angles = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * frequencies
        cos, sin = angles.cos().float(), angles.sin().float()
        first, second = x.chunk(2, -1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def _adapted(block: Module, names: Sequence[str], x: Tensor) -> list[Tensor]:
    """What low-rank adapters add."""
    narrow = block.linear(x, *(f"{name}.0" for name in names))
    return [block.linear(low, f"{name}.1")[0] for name, low in zip(names, narrow, strict=True)]


def _unit(x: Tensor, eps: float) -> Tensor:
    import torch

    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
