"""Products of the last tokens of several: their rows as one matrix, which PyTorch does not see that they are.

A model makes logits of the last token only, `hidden_states[:, -1:]`, and the head's product is that of [batch, 1,
features] whose strides are the whole prompt's. Where the weight needs no gradients, as in a PEFT model or one that was
made within torch.inference_mode, PyTorch (https://github.com/pytorch/pytorch/issues/186148) writes it out once for
every row of the batch and multiplies batch by batch. Measured with a head of 32,000 x 2,048 in bfloat16 on two cores of
a Xeon: 380 ms for one prompt and 2,900 for eight, where one matrix takes 9.
"""

from __future__ import annotations

from typing import Any

import torch  # noqa: TID253
import torch.nn.functional as F  # noqa: TID253
from torch import Tensor  # noqa: TID253

from .linears import PLAIN, Instead


def gains(shape: torch.Size, device: str) -> bool:
    """Whether the head of a model that is given [batch, tokens] ids may gain."""
    return (
        shape[-1] > 1
        and device == "cpu"
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    )


def linear(input: Any, weight: Any, bias: Any = None) -> Tensor | None:
    """F.linear with the rows of `input` [..., in_features] as one matrix; None where PyTorch makes one of them."""
    if type(input) not in PLAIN or input.dim() < 3 or weight.dim() != 2:
        return None
    strides, shape = input.stride(), input.shape
    if all(strides[i] == strides[i + 1] * shape[i + 1] for i in range(input.dim() - 2)):
        return None
    return F.linear(input.reshape(-1, shape[-1]), weight, bias).view(*shape[:-1], len(weight))


def within() -> Instead:
    """Within it, F.linear is `linear`."""
    return Instead({F.linear: linear})
