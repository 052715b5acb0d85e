"""Products of the last tokens of several: their rows as one matrix, which PyTorch does not see that they are.

A model makes logits of the last token only, `hidden_states[:, -1:]`, and the head's product is that of [batch, 1,
features] whose strides are the whole prompt's. Where the weight needs no gradients, as in a PEFT model or one that was
made within torch.inference_mode, PyTorch (https://github.com/pytorch/pytorch/issues/186148) writes it out once for
every row of the batch and multiplies batch by batch. Measured with a head of 32,000 x 2,048 in bfloat16 on two cores of
a Xeon: 380 ms for one prompt and 2,900 for eight, where one matrix takes 9.
"""

from __future__ import annotations

import torch  # noqa: TID253
import torch.nn.functional as F  # noqa: TID253

from .function_mode import Instead, Linears, one_matrix


def gains(shape: torch.Size, device: str) -> bool:
    """Whether the head of a model that is given [batch, tokens] ids may gain, and no other context sees to it."""
    return (
        shape[-1:].numel() > 1
        and device == "cpu"
        and not Linears.runs()
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    )


def within() -> Instead:
    """Within it, F.linear is `one_matrix`."""
    return Instead({F.linear: one_matrix})
