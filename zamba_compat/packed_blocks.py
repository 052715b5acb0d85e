"""Copies of the shared blocks' weights in 12 bits, for one token at a time.

A block is read anew at every depth, 6 times a token in 1.2B and 13 times in 7B, and reading is all that a token costs.
bfloat16 weights fit into 12 bits without loss (`native.packed`): a quarter less to read.

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
from torch import Tensor  # noqa: TID253
from torch.utils.weak import WeakIdKeyDictionary  # noqa: TID253

from .native.packed import CHUNK, Loops, Packed

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
            out = scaled.new_empty(part.rows)
            found.product(part, scaled, out)
            known = self._of_embedding = part, scaled, out
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


def prompted(layer: Any) -> None:
    """A shared block has seen several tokens at once: before the next one its weights may have been changed."""
    for _, copy in copies(layer):
        copy.forget_caches()


def copies(layer: Any) -> Iterator[tuple[Tensor, Copy]]:
    """The weights of a Zamba2AttentionDecoderLayer that can have copies, and what is known of each."""
    attention, feed_forward = layer.self_attn, layer.feed_forward
    halves = attention.q_proj, attention.k_proj, attention.v_proj
    for module in (*halves, attention.o_proj, feed_forward.gate_up_proj, feed_forward.down_proj):
        weight: Any = getattr(module, "weight", None)
        # No other type: such a one may be quantized, or in parts on several devices.
        copy = copy_of(weight, module in halves) if type(weight) is torch.nn.Parameter else None
        if copy is not None:
            yield weight, copy


def _has_room(size: int) -> bool:
    """Whether there is memory to spare; true where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return True
    free = next((int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
    return free is None or free * 1024 > _SPARE * size
