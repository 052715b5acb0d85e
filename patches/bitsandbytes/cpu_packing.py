"""Keep 4-bit weights exact, whole and movable on CPUs with AVX512-BF16.

Symptom:  after a first forward in eval mode, without an error: save_pretrained and state_dict() write other weights
          (22% off were seen), and so do .to(device), pickling, merging and dequantizing; gradients are missing; an
          input whose last dimension is not contiguous gives wrong numbers, and float32 is computed with the
          precision of bfloat16. With an error: AssertionError "N must be
          divisible by block_n" if the rows are no multiple of 32 (in_proj of 2.7B and 7B), RuntimeError "shape ... is
          invalid" if the columns are no multiple of the blocksize.
Cause:    the forward reorders the weight for a bfloat16 kernel and rewrites the quant state to match. The way back
          leaves absmax transposed and rounded to bfloat16, or quantizes it anew; Params4bit.to, __getstate__,
          dequantize_4bit and a forward that needs gradients do not take it at all.
Upstream: bitsandbytes-foundation/bitsandbytes#2078 with #2083 for .to(device); none known for the rest.
Remove:   when a forward no longer rewrites the quant state.

The weight is packed here, too, once for all modules that hold it, but the quant state keeps what quantization produced;
what the kernel needs besides is added to it. A tensor's own shape tells in which layout it is, never a flag, so a plain
tensor and a packed one may share a quant state. The nibbles are only permuted (zamba_compat.cpu.bnb_packed): the way
back is exact, and the kernel gives the bits that it gives without this adapter. Nothing is packed that is given float32
to compute in float32, nor in a Zamba, whose products are loops in C (cpu_product.py). This adapter is to be listed
after others of the same targets, so that those meet plain weights only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from zamba_compat._engine.registry import Adapter, Patch
from zamba_compat.cpu.bnb_packed import is_packed, kernel_absmax, packed_bytes, plain_bytes

MODULES = "bitsandbytes.nn.modules"

_packed: Any = None  # the weights that are packed now, held weakly


def plain(tensor: Any, state: Any) -> Any:
    """A weight's tensor in the plain layout: itself, unless it is packed."""
    if not is_packed(tensor, state):
        return tensor
    shape, dtype = state.cpu_plain
    return plain_bytes(_bare(tensor), state.shape[0]).contiguous().reshape(-1).view(dtype).reshape(shape)


def pack(weight: Any) -> None:
    """Bring a quantized weight into the packed layout, if it is one that the kernel can take."""
    import torch

    _reclaim(weight)
    state = weight.quant_state
    if is_packed(weight, state) or not _packable(weight, state):
        return

    rows, columns = state.shape
    with _lasting(weight):
        data = _bare(weight).contiguous()
        state.cpu_plain = tuple(data.shape), data.dtype
        state.cpu_absmax = kernel_absmax(state)
        weight.data = packed_bytes(data.reshape(-1).view(torch.uint8).reshape(rows, columns // 2))
        _remembered()[weight] = None


def unpack(weight: Any) -> None:
    """Bring a weight back into the plain layout, bit for bit; nothing happens to one that is in it."""
    _reclaim(weight)
    state = getattr(weight, "quant_state", None)
    if state is not None and is_packed(weight, state):
        with _lasting(weight):
            weight.data = plain(weight, state)
            state.cpu_absmax = None
            _remembered().pop(weight, None)


def unpack_all() -> None:
    """Unpack every weight that is packed: before the adapter is taken back, since bitsandbytes alone cannot."""
    for weight in list(_packed or ()):
        unpack(weight)


def _reclaim(weight: Any) -> None:
    """Unpack what bitsandbytes itself packed before this adapter was there; the bits that it rounded off are lost."""
    state: Any = getattr(weight, "quant_state", None)
    if getattr(state, "packing_format_for_cpu", False) and tuple(weight.shape) == (state.shape[0], state.shape[1] // 2):
        from bitsandbytes.nn import modules

        with _lasting(weight):
            weight.data, weight.quant_state = modules._convert_weight_packed_for_cpu_inverse(weight.data, state)


@contextlib.contextmanager
def _lasting(weight: Any) -> Iterator[None]:
    """What is made here outlives a forward: it has no history, and is an inference tensor only if the weight is."""
    import torch

    with torch.inference_mode(weight.is_inference()), torch.no_grad():
        yield


def _bare(tensor: Any) -> Any:
    import torch

    return tensor.data.as_subclass(torch.Tensor)


def _remembered() -> Any:
    global _packed
    if _packed is None:
        from torch.utils.weak import WeakIdKeyDictionary

        _packed = WeakIdKeyDictionary()
    return _packed


def _packable(weight: Any, state: Any) -> bool:
    if weight.device.type != "cpu" or state.shape is None or len(state.shape) != 2:
        return False
    rows, columns = state.shape
    return bool(
        columns % state.blocksize == 0
        and weight.numel() * weight.element_size() * 2 == rows * columns
        and state.absmax.numel() * state.blocksize == rows * columns
    )


def _is_token(x: Any) -> bool:
    """Whether a module of a Zamba is called for inference with a single row.

    In a TorchFunctionMode, as the shared blocks have one, what bitsandbytes does around the product would take as long.
    """
    import torch

    from zamba_compat.cpu.nf4 import is_running

    alone = type(x) is torch.Tensor and x.numel() == x.shape[-1] and is_running()
    return alone and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _stays_plain(module: Any, x: Any) -> bool:
    """Whether the kernel is not to be used: it would round float32, or there are loops in C for this model."""
    import torch

    from zamba_compat.cpu.nf4 import is_running, takes

    asked = module.compute_dtype if module.compute_type_is_set else None
    exact = x.dtype == torch.float32 and asked in (None, torch.float32)
    return exact or (is_running() and takes(module.weight))


def _passing(module: Any) -> bool:
    """Whether a hook brings the weight for one forward only: packing it would cost more than it saves."""
    return bool(getattr(getattr(module, "_hf_hook", None), "offload", False))


def forward(original: Any) -> Any:
    import torch

    def forward(self: Any, x: Any) -> Any:
        weight = self.weight
        # Without a quant state, one is about to be put on a weight that a sharding wrapper has just gathered.
        if x.device.type == "cpu" and getattr(weight, "quant_state", None) is not None:
            if self.training or x.requires_grad or _stays_plain(self, x):
                unpack(weight)
            elif not _passing(self):
                pack(weight)
            if _is_token(x):
                with torch._C.DisableTorchFunction():
                    return original(self, x)
        return original(self, x)

    return forward


def matmul_4bit(original: Any) -> Any:
    def matmul_4bit(A: Any, B: Any, quant_state: Any, out: Any = None, bias: Any = None) -> Any:
        import torch

        if A.device.type == "cpu" and A.dim() > 2 and out is None:
            # With more dimensions the plain path copies the dequantized weight to transpose it.
            result = matmul_4bit(A.reshape(-1, A.shape[-1]), B, quant_state, bias=bias)
            return result.reshape(*A.shape[:-1], result.shape[-1])
        if getattr(quant_state, "cpu_plain", None) is None:
            return original(A, B, quant_state, out=out, bias=bias)
        weight = B.data
        if not weight.is_contiguous():  # up to 0.49 a weight comes transposed
            weight = weight.t()
        if not is_packed(weight, quant_state):
            return original(A, B, quant_state, out=out, bias=bias)
        rows, columns = quant_state.shape
        gradient = torch.is_grad_enabled() and A.requires_grad
        if gradient or A.device.type != "cpu" or A.shape[-1] != columns or A.numel() == 0:
            return original(A, plain(weight, quant_state).t(), quant_state, out=out, bias=bias)
        absmax = getattr(quant_state, "cpu_absmax", None)
        if absmax is None:  # dropped with another weight of this quant state
            absmax = kernel_absmax(quant_state)
        result = torch.ops.bitsandbytes.gemv_4bit.default(
            A.contiguous(), _bare(weight), [len(weight), columns], absmax, quant_state.code, quant_state.blocksize
        )[..., :rows]
        result = result.contiguous() if bias is None else (result + bias).to(A.dtype)
        return result if out is None else out.copy_(result)

    return matmul_4bit


def dequantize_4bit(original: Any) -> Any:
    def dequantize_4bit(A: Any, quant_state: Any = None, *args: Any, **kwargs: Any) -> Any:
        return original(plain(A, quant_state), quant_state, *args, **kwargs)

    return dequantize_4bit


def convert(original: Any) -> Any:
    def convert(qweight: Any, quant_state: Any, block_n: int = 32) -> tuple[Any, Any]:
        return qweight, quant_state  # the forward above has decided already

    return convert


def convert_inverse(original: Any) -> Any:
    def convert_inverse(packed_weight: Any, quant_state: Any, block_n: int = 32) -> tuple[Any, Any]:
        data, state = original(packed_weight, quant_state, block_n)
        if not state.nested:
            state.absmax = state.absmax.T.reshape(-1).float()
        return data, state

    return convert_inverse


def unpacked(of: str | None) -> Any:
    """A factory for a method before which the weight is unpacked: the object itself, or an attribute of it."""

    def factory(original: Any) -> Any:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            unpack(self if of is None else getattr(self, of))
            return original(self, *args, **kwargs)

        return method

    return factory


def no_kernel() -> str | None:
    from bitsandbytes.functional import has_avx512bf16

    return None if has_avx512bf16() else "this CPU has no AVX512-BF16, so nothing is packed"


def _patches() -> Iterator[Patch]:
    for module in ("bitsandbytes.autograd._functions", "bitsandbytes"):
        signature = ("A", "B", "quant_state", "out", "bias")
        yield Patch(target=f"{module}:matmul_4bit", replace=matmul_4bit, signature=signature)
    yield Patch(
        target="bitsandbytes.functional:dequantize_4bit",
        replace=dequantize_4bit,
        signature=("A", "quant_state", ...),
    )
    targets: dict[str, tuple[Any, tuple[str, ...]]] = {
        "Linear4bit.forward": (forward, ("x",)),
        "Linear4bit._save_to_state_dict": (unpacked("weight"), ("destination", "prefix", "keep_vars")),
        # Moves and casts of a weight that unpickling has made a plain Parameter, too.
        "Linear4bit._apply": (unpacked("weight"), ("fn", "recurse")),
        "Embedding4bit.forward": (unpacked("weight"), ("input",)),
        "Params4bit.to": (unpacked(None), ("*args", "**kwargs")),
        # Pickling, copy and deepcopy.
        "Params4bit.__getstate__": (unpacked(None), ()),
    }
    for name, (replace, parameters) in targets.items():
        yield Patch(target=f"{MODULES}:{name}", replace=replace, signature=("self", *parameters))
    for name, replace, first in (("", convert, "qweight"), ("_inverse", convert_inverse, "packed_weight")):
        target = f"{MODULES}:_convert_weight_packed_for_cpu{name}"
        yield Patch(target=target, replace=replace, signature=(first, "quant_state", "block_n"))


ADAPTER = Adapter(
    name="bitsandbytes-cpu-packing",
    library="bitsandbytes",
    since="0.49",
    group="quantization",
    patches=tuple(_patches()),
    condition=no_kernel,
    upstream="bitsandbytes-foundation/bitsandbytes#2078, #2083",
)
