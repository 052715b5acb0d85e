"""One call of a shared block: which of PyTorch's functions are replaced in it, and when.

For a single token, attention goes through a loop in C (`decode_attention`), and keys and values grow in place
(`kv_cache`). Each computes what PyTorch does, and each knows where it has to be PyTorch's own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch  # noqa: TID253
import torch.nn.functional as F  # noqa: TID253
from torch import Tensor  # noqa: TID253

from . import decode_attention, kv_cache
from .blocking import autocasts
from .function_mode import Handler, Instead, Linears

# Tokens from which on attention alone is worth that every function of PyTorch passes by here, which in NF4 are many.
FEWEST = 512
FEWEST_GROWING = 1024  # and keys and values that grow


def within(hidden: Tensor, cache: Any) -> AbstractContextManager[object]:
    """Around a call of a Zamba2AttentionDecoderLayer.

    hidden: [batch, tokens, hidden_size], what it is called with. cache: the one of this generation, or None.
    """
    found = _gains(hidden, cache)
    return Instead(found) if found else nullcontext()


def _gains(hidden: Tensor, cache: Any) -> dict[Callable[..., Any], Handler]:
    """The functions that are replaced, and by what."""
    found: dict[Callable[..., Any], Handler] = {}
    watched = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    if hidden.device.type != "cpu" or cache is None or watched or torch.is_grad_enabled() or autocasts():
        return found
    before = int(cache.get_seq_length())
    asked = Linears.runs()  # every function passes by already
    if hidden.shape[1] == 1 and (asked or before >= FEWEST):
        found[F.scaled_dot_product_attention] = decode_attention.attention
    if before >= (kv_cache.FEWEST if asked else FEWEST_GROWING):
        found[torch.cat] = kv_cache.joined
    return found
