"""One token through a shared block: its weights from copies of 12 bits, and the embedding's part once per token.

A block is read anew at every depth, 6 times a token in 1.2B and 13 times in 7B, and reading is all that a token costs.
Two things are saved. bfloat16 weights fit into 12 bits without loss (`native.packed`): a quarter less to read. And q, k
and v are products of [hidden state, embedding], normed together: the embedding's half of them is the same at every
depth but for the norm's scale of the token, and is computed once.

The copies take three quarters of the shared blocks' own bytes, 7 to 10% of the model. They are no part of it: each is
made at a weight's second token, and dropped with the weight. That a weight is still what was copied is asked in three
ways: by its version at every use; row by row, one at every use, for what writes to `.data` unseen; in full at the first
token of each cache, and after every prompt.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch  # noqa: TID253
import torch.nn.functional as F  # noqa: TID253
from torch import Tensor  # noqa: TID253
from torch.utils.weak import WeakIdKeyDictionary  # noqa: TID253

from .linears import Handler, linear
from .native.packed import CHUNK, Loops, Packed, loops

_SPARE = 4  # times what copies take has to be free before they are made


class Copy:
    """What is known of a shared weight, [out_features, in_features]: its copy, once it has one.

    halves: whether it is one of q, k and v, whose columns belong to hidden state and embedding.
    """

    def __init__(self, halves: bool) -> None:
        self.halves = halves
        self._asked = 0
        self._reset()

    def _reset(self) -> None:
        self._first: Any = None  # the embedding of the token that the weight was met with first
        self._parts: tuple[Packed, ...] = ()
        self._of: tuple[int, int] | None = None  # the weight's memory and version when it was copied
        self._caches: list[Any] = []  # of the generations that it has been compared in full for
        self._of_embedding: tuple[Packed, Tensor, Tensor] | None = None

    def forget_caches(self) -> None:
        """Have the weight compared in full at its next use."""
        self._caches = []

    def ready(self, found: Loops, weight: Tensor, embedding: Tensor, cache: Any) -> tuple[Packed, ...]:
        """The parts of the copy, which is made now where it is time; () where there is none."""
        state = weight.data_ptr(), weight._version
        if self._of is None:
            self._made(found, weight, embedding, state, cache)
        elif self._of != state or not self._still(found, weight, cache):
            self._reset()
        return self._parts

    def _made(self, found: Loops, weight: Tensor, embedding: Tensor, state: tuple[int, int], cache: Any) -> None:
        if self._first is None:
            self._first = weakref.ref(embedding)
        # A weight that is brought in for a moment, from the disk or another device, never sees a second token.
        if self._first() is embedding:
            return
        self._of = state
        self._compared(cache)
        if not _can_be_copied(weight, self.halves) or not _has_room(weight.nbytes):
            return
        made = [found.pack(part) for part in self._split(weight)]
        if all(part is not None for part in made):
            self._parts = tuple(part for part in made if part is not None)

    def _split(self, weight: Tensor) -> tuple[Tensor, ...]:
        middle = weight.shape[1] // 2
        return (weight[:, :middle], weight[:, middle:]) if self.halves else (weight,)

    def _still(self, found: Loops, weight: Tensor, cache: Any) -> bool:
        """Whether the weight is the one that was copied."""
        if not self._parts:
            return True
        row = None
        if any(known() is cache for known in self._caches):
            row = self._asked % len(weight)
            self._asked += 1
        else:
            self._compared(cache)
        return all(found.same(part, some, row) for part, some in zip(self._parts, self._split(weight), strict=True))

    def _compared(self, cache: Any) -> None:
        self._caches = [known for known in self._caches if known() is not None] + [weakref.ref(cache)]

    def of_embedding(self, found: Loops, part: Packed, scaled: Tensor) -> Tensor:
        """The embedding's half of the product, before the token's scale. scaled: [in_features / 2], float32."""
        known = self._of_embedding
        if known is None or known[0] is not part or not torch.equal(known[1], scaled):
            known = self._of_embedding = part, scaled, _times(found, part, scaled)
        return known[2]


_copies: Any = WeakIdKeyDictionary()  # of weights
_lock = threading.Lock()


def copy_of(weight: Tensor, halves: bool) -> Copy | None:
    """The Copy of a shared block's weight; None where it can have none."""
    copy: Copy | None = _copies.get(weight)
    if copy is None and _can_be_copied(weight, halves):
        with _lock:
            copy = _copies.setdefault(weight, Copy(halves))
    return copy


def _can_be_copied(weight: Tensor, halves: bool) -> bool:
    """An inference tensor has no version to ask for."""
    return Loops.fit(weight) and not weight.is_inference() and not (halves and weight.shape[1] % (2 * CHUNK))


class _Normed:
    """What `input_layernorm` makes of a token's [hidden state, embedding], taken apart."""

    def __init__(self, norm: Any, hidden: Tensor, embedding: Tensor) -> None:
        self._norm, self._given = norm, (hidden, embedding)
        self._found: tuple[Tensor, Tensor, Tensor] | None = None

    def scale(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """The token's scale [1], and the embedding times the norm's weight [hidden_size], in float32.

        None where x [1, 2 * hidden_size] is not what the norm makes of the two, whoever changed it.
        """
        if self._found is None:
            both = torch.cat(self._given, -1).view(-1)
            wide, weight, epsilon = both.float(), self._norm.weight, self._norm.variance_epsilon
            scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)  # operation by operation the norm's own
            scaled = wide[len(wide) // 2 :] * weight[len(wide) // 2 :].float()
            self._found = weight * (wide * scale).to(both.dtype), scale, scaled
        normed, scale, scaled = self._found
        return (scale, scaled) if torch.equal(normed, x.view(-1)) else None


def products(layer: Any, hidden: Tensor, embedding: Tensor, cache: Any) -> Handler | None:
    """F.linear for a call of a Zamba2AttentionDecoderLayer: its weights through their copies.

    hidden, embedding: [1, 1, hidden_size], what the layer is called with. cache: the one of this generation.
    None where nothing gains from it.
    """
    found = loops() if _fits(hidden, embedding, cache) else None
    copies = {} if found is None else {id(weight): copy for weight, copy in _weights(layer)}
    if found is None or not copies:
        return None
    normed = _Normed(layer.input_layernorm, hidden, embedding)

    def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        copy = copies.get(id(weight))
        parts = () if copy is None else copy.ready(found, weight, embedding, cache)
        if copy is None or not parts:
            return F.linear(x, weight, bias)
        wide = x.float().view(-1)
        if not copy.halves:
            result = _times(found, parts[0], wide)
        else:
            result = _times(found, parts[0], wide[: parts[0].columns])
            apart = normed.scale(x)
            if apart is None:
                result += _times(found, parts[1], wide[parts[0].columns :])
            else:
                result.addcmul_(copy.of_embedding(found, parts[1], apart[1]), apart[0])
        return (result if bias is None else result.add_(bias)).to(x.dtype)[None]

    return linear(product, lambda rows: rows == 1)


def _fits(hidden: Tensor, embedding: Tensor, cache: Any) -> bool:
    return (
        getattr(type(cache), "__weakrefoffset__", 0) != 0  # an object of its own, no tuple and not None
        and hidden.dtype == torch.bfloat16
        and hidden.device.type == "cpu"
        and hidden.shape == embedding.shape
        and hidden.shape[:-1].numel() == 1
    )


def prompted(layer: Any) -> None:
    """A shared block has seen several tokens at once: before the next one its weights may have been changed."""
    for _, copy in _weights(layer):
        copy.forget_caches()


def _weights(layer: Any) -> Iterator[tuple[Tensor, Copy]]:
    attention, feed_forward = layer.self_attn, layer.feed_forward
    halves = attention.q_proj, attention.k_proj, attention.v_proj
    for module in (*halves, attention.o_proj, feed_forward.gate_up_proj, feed_forward.down_proj):
        weight: Any = getattr(module, "weight", None)
        # No other type: such a one may be quantized, or in parts on several devices.
        copy = copy_of(weight, module in halves) if type(weight) is torch.nn.Parameter else None
        if copy is not None:
            yield weight, copy


def _times(found: Loops, part: Packed, x: Tensor) -> Tensor:
    out = x.new_empty(part.rows)
    found.product(part, x, out)
    return out


def _has_room(size: int) -> bool:
    """Whether there is memory to spare; true where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return True
    free = next((int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
    return free is None or free * 1024 > _SPARE * size
