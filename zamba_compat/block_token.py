"""One token's call of a shared block, with the copies of its weights that `packed_blocks` keeps.

q, k and v are products of [hidden state, embedding], normed together: the embedding's half of them is the same at every
depth but for the norm's scale of the token, and is computed once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch  # noqa: TID253
import torch.nn.functional as F  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253

from .blocked import is_plain, is_unwatched
from .buffers import buffers
from .native import rows as native_rows
from .native.packed import Loops, Packed, loops
from .packed_blocks import Copy, copies


class _Normed:
    """What `input_layernorm` makes of a token's [hidden state, embedding], taken apart."""

    def __init__(self, norm: Any, hidden: Tensor, embedding: Tensor) -> None:
        self._norm, self._given = norm, (hidden, embedding)
        self._found: tuple[Tensor, float, Tensor] | None = None

    def scale(self, x: Tensor) -> tuple[float, Tensor] | None:
        """The token's scale, and the embedding times the norm's weight [hidden_size], in float32.

        None where x [2 * hidden_size] is not what the norm makes of the two, whoever changed it.
        """
        if self._found is None:
            self._found = self._apart()
        normed, scale, scaled = self._found
        return (scale, scaled) if torch.equal(normed, x) else None

    def _apart(self) -> tuple[Tensor, float, Tensor]:
        both = torch.cat(self._given, -1).view(-1)
        wide, weight, middle = both.float(), self._norm.weight, len(both) // 2
        # Operation by operation the norm's own.
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self._norm.variance_epsilon)
        normed = weight * (wide * scale).to(both.dtype)
        return normed, float(scale), wide[middle:].mul_(weight[middle:])


class Token:
    """The products of one token's call of a Zamba2AttentionDecoderLayer."""

    def __init__(self, found: Loops, layer: Any, hidden: Tensor, embedding: Tensor, cache: Any) -> None:
        self._loops, self._layer, self._embedding, self._cache = found, layer, embedding, cache
        self._copies = {id(weight): copy for weight, copy in copies(layer)}
        self._normed = _Normed(layer.input_layernorm, hidden, embedding)

    def __bool__(self) -> bool:
        return bool(self._copies)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        """For `linears.linear`, of one row."""
        with torch._C.DisableTorchFunction():  # each of PyTorch's functions would ask whether it is another here
            x, copy = x[0].contiguous(), self._copies.get(id(weight))
            found = self._plain(x, weight, bias) if copy is None else self._product(copy, x, weight, bias)
            return None if found is None else found[None]

    def _plain(self, x: Tensor, weight: Any, bias: Any) -> Tensor | None:
        """By the weight itself, which is no shared one."""
        found = native_rows.loop() if bias is None and type(weight) is nn.Parameter else None
        if found is None or not native_rows.is_matrix(weight) or weight.shape[1] != len(x):
            return None
        out = x.new_empty(len(weight))
        found.product(weight, x, buffers.take("row", x, len(x), dtype=torch.float32), out)
        return out

    def _product(
        self, copy: Copy, x: Tensor, weight: Tensor, bias: Any = None, adapter: tuple[Tensor, Tensor] | None = None
    ) -> Tensor | None:
        """By the weight's copy, where there is one."""
        parts = copy.ready(self._loops, weight, self._embedding, self._cache)
        if not parts or (copy.halves and bias is not None):
            return None
        plus, times = None if bias is None else bias.float().contiguous(), 1.0
        if copy.halves:
            apart = self._normed.scale(x)
            if apart is None:
                plus = _times(self._loops, parts[1], x[parts[0].columns :].float())
            else:
                plus, times = copy.of_embedding(self._loops, parts[1], apart[1]), apart[0]
        out = x.new_empty(parts[0].rows)
        rank = 0 if adapter is None else len(adapter[0])
        room = buffers.take("token", x, self._loops.token_room(len(x), rank), dtype=torch.float32)
        self._loops.token(parts[0], x, room, out, plus=plus, times=times, adapter=adapter)
        return out

    def mlp(self, mlp: Any, hidden_state: Tensor, layer_idx: int) -> Tensor | None:
        """The forward pass of the block's Zamba2MLP; None where it has to be the module's own.

        hidden_state: [1, 1, hidden_size]; layer_idx: the layer at whose position the block runs.
        """
        if mlp is not self._layer.feed_forward or hidden_state.numel() != hidden_state.shape[-1]:
            return None
        pair = mlp.gate_up_proj_adapter_list[mlp.layer_dic[layer_idx]]
        if type(pair) is not nn.Sequential or len(pair) != 2 or not is_unwatched(pair):
            return None
        linears = mlp.gate_up_proj, mlp.down_proj, *pair
        if not all(is_plain(linear, hidden_state) and linear.bias is None for linear in linears):
            return None
        gate_up_proj, down_proj, down, up = (linear.weight for linear in linears)
        first, second = self._copies.get(id(gate_up_proj)), self._copies.get(id(down_proj))
        x = hidden_state.reshape(-1).contiguous()
        if first is None or second is None or not _go_together(x, gate_up_proj, down, up):
            return None
        both = self._product(first, x, gate_up_proj, adapter=(down, up))
        if both is None:
            return None
        gate, factor = both.chunk(2)
        x = mlp.act_fn(gate).mul_(factor)
        out = self._product(second, x, down_proj)
        return F.linear(x, down_proj).view(hidden_state.shape) if out is None else out.view(hidden_state.shape)


def _go_together(x: Tensor, weight: Tensor, down: Tensor, up: Tensor) -> bool:
    return (
        type(x) is Tensor
        and native_rows.is_matrix(down)
        and native_rows.is_matrix(up)
        and down.shape[1] == weight.shape[1] == len(x)
        and up.shape == (len(weight), len(down))
    )


def _times(found: Loops, part: Packed, x: Tensor) -> Tensor:
    out = x.new_empty(part.rows)
    found.product(part, x, out)
    return out


def token_of(layer: Any, hidden: Tensor, embedding: Tensor, cache: Any) -> Token | None:
    """For a call of a Zamba2AttentionDecoderLayer, of which nothing is known; None where nothing gains from it.

    hidden, embedding: [1, 1, hidden_size], what the layer is called with. cache: the one of this generation.
    """
    found = loops() if _fits(hidden, embedding, cache) else None
    return None if found is None else Token(found, layer, hidden, embedding, cache) or None


def _fits(hidden: Tensor, embedding: Tensor, cache: Any) -> bool:
    return (
        getattr(type(cache), "__weakrefoffset__", 0) != 0  # an object of its own, no tuple and not None
        and hidden.dtype == torch.bfloat16
        and hidden.device.type == "cpu"
        and hidden.shape == embedding.shape
        and hidden.shape[:-1].numel() == 1
    )


class _Running(threading.local):
    token: Token | None = None


_running = _Running()


@contextmanager
def running(token: Token | None) -> Iterator[None]:
    """While a shared block's call runs, for `running_mlp`."""
    before, _running.token = _running.token, token
    try:
        yield
    finally:
        _running.token = before


def running_mlp(mlp: Any, hidden_state: Tensor, layer_idx: int) -> Tensor | None:
    """`Token.mlp` of the call that runs in this thread, if one does."""
    token = _running.token
    if token is None:
        return None
    with torch._C.DisableTorchFunction():  # as in Token.product
        return token.mlp(mlp, hidden_state, layer_idx)
