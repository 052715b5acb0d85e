"""Within a context, F.linear of 16-bit tensors on a CPU by a product of our own; and a model's forward within one."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch  # noqa: TID253
import torch.nn.functional as F  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253
from torch.overrides import TorchFunctionMode  # noqa: TID253

SHORT = (torch.bfloat16, torch.float16)
PLAIN = (Tensor, nn.Parameter)  # any other type may have no memory, or mean something else
Product = Callable[[Tensor, Tensor, Tensor | None], Tensor | None]


def onednn_on_x86() -> bool:
    """Whether PyTorch hands products to oneDNN on the processors that these were measured on."""
    on_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return on_x86 and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def isa_limit() -> str:
    """The instructions that oneDNN, and with it what is measured here, is kept to; see ONEDNN_MAX_CPU_ISA."""
    return os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()


Handler = Callable[..., Any]


class Instead(TorchFunctionMode):
    """Within it, some of PyTorch's functions are others, whoever calls them.

    handlers: by function, what is called with its arguments; where that returns None, PyTorch's own is called.
    """

    def __init__(self, handlers: Mapping[Callable[..., Any], Handler]) -> None:
        super().__init__()
        self._handlers = handlers

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        handler = self._handlers.get(func)
        result = None if handler is None else handler(*args, **kwargs)
        return func(*args, **kwargs) if result is None else result


_within = threading.local()


class Linears(Instead):
    """Replaces F.linear, and nothing else, by `linear` of the same arguments, or `one_matrix` where that is None."""

    def __init__(self, product: Product, fits: Callable[[int], bool]) -> None:
        found = linear(product, fits)

        def handler(*args: Any, **kwargs: Any) -> Tensor | None:
            result: Tensor | None = found(*args, **kwargs)
            return one_matrix(*args, **kwargs) if result is None else result

        super().__init__({F.linear: handler})

    def __enter__(self) -> Any:
        _within.depth = getattr(_within, "depth", 0) + 1
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *raised: Any) -> None:
        _within.depth -= 1
        super().__exit__(*raised)  # type: ignore[no-untyped-call]

    @staticmethod
    def runs() -> bool:
        """Whether this thread is within one."""
        return getattr(_within, "depth", 0) > 0


def unasked(x: Tensor) -> AbstractContextManager[object]:
    """Within it, nothing that replaces PyTorch's functions is asked about those that compute with x.

    There are thousands in a prompt: within `Linears`, asking takes some percent of the time of one of 128 tokens. Other
    types of tensor than PyTorch's own are asked about nevertheless.
    """
    return torch._C.DisableTorchFunction() if type(x) in PLAIN else nullcontext()


def one_matrix(input: Any, weight: Any, bias: Any = None) -> Tensor | None:
    """F.linear with the rows of `input` [..., in_features] as one matrix; None where PyTorch makes one of them."""
    if type(input) not in PLAIN or input.dim() < 3 or weight.dim() != 2:
        return None
    strides, shape = input.stride(), input.shape
    if all(strides[i] == strides[i + 1] * shape[i + 1] for i in range(input.dim() - 2)):
        return None
    return F.linear(input.reshape(-1, shape[-1]), weight, bias).view(*shape[:-1], len(weight))


def linear(product: Product, fits: Callable[[int], bool]) -> Handler:
    """F.linear by another product.

    product: of x [rows, in_features], weight [out_features, in_features] and bias [out_features] or None; None where it
        is for PyTorch.
    fits: whether `product` is wanted for a number of rows. Operands that are no plain tensors of one 16-bit dtype on
        a CPU stay with PyTorch.
    """

    def handler(*args: Any, **kwargs: Any) -> Tensor | None:
        found = _operands(*args, **kwargs)
        if found is None or not fits(found[0].shape[:-1].numel()):
            return None
        x, weight, bias = found
        result = product(x.reshape(-1, x.shape[-1]), weight, bias)
        return None if result is None else result.view(*x.shape[:-1], len(weight))

    return handler


def _operands(input: Any, weight: Any, bias: Any = None) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """F.linear's own, by its names for them; None where one of them is of another kind."""
    for tensor in (input, weight) if bias is None else (input, weight, bias):
        if (
            type(tensor) not in PLAIN
            or tensor.dtype not in SHORT
            or tensor.dtype != input.dtype
            or tensor.device.type != "cpu"
        ):
            return None
    return (input, weight, bias) if weight.dim() == 2 else None


def forward_within(original: Any, context: Callable[[Any, torch.Size], AbstractContextManager[object] | None]) -> Any:
    """The forward of a causal language model, in the context for the model and its input: [batch, tokens].

    `context` returns None where nothing is to be changed.
    """

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        tokens = args[0] if args else kwargs.get("input_ids")
        embedded = kwargs.get("inputs_embeds")
        given = tokens if tokens is not None or embedded is None else embedded[..., 0]
        found = context(self, torch.Size((0, 0)) if given is None else given.shape)
        if found is None:
            return original(self, *args, **kwargs)
        with found:
            return original(self, *args, **kwargs)

    return forward
