"""Run the Mamba2 layers right where fused kernels are in use, and on accelerators without any.

Symptom:  with mamba_ssm and causal_conv1d. RuntimeError: quantized models in training ("mat1 and mat2 shapes"),
          widths whose projection is no multiple of 8 (strides), before 5.13 several tokens after a cache. Without an
          error: int8 with LoRA under autocast off by 100%, training with left padding by 33% (both from 5.15 on),
          padding between tokens by 42%, an adapter on out_proj ignored in training. Without kernels, as on a CPU:
          see plain_scan.py.
Cause:    the kernel of a whole mixer is handed out_proj.weight, whatever module holds it, and from 5.15 on no mask;
          causal_conv1d wants strides of multiples of 8; padding enters the convolution through its bias.
Upstream: none known.
Remove:   when a release leaves that kernel for quantized and adapted layers, and masks what it hands the others.

The kernels stay as they are: zamba_compat/mamba2/fused.py decides which are called, with what. A CPU has paths of its
own and comes here for samples packed into one row alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zamba_compat._engine.registry import Adapter
from zamba_compat.mamba2.cache_states import (
    Read,
    Write,
    never_records,
    read_hybrid,
    read_layers,
    read_numbered,
    records_past,
    write_hybrid,
    write_layers,
    write_numbered,
)

MIXER = "transformers.models.zamba2.modeling_zamba2:Zamba2MambaMixer"
Find = Callable[[Any], Any]


def globals_of_module(mixer: Any) -> Any:
    """The kernels that a release keeps as globals, which are None where they are absent or not wanted."""
    import sys

    import torch

    from zamba_compat.mamba2.fused import Kernels

    names = sys.modules[type(mixer).__module__].__dict__
    if not names["is_fast_path_available"] or torch.compiler.is_compiling():  # as the release does itself
        return None
    kernels = (
        names["causal_conv1d_fn"],
        names["causal_conv1d_update"],
        names["mamba_chunk_scan_combined"],
        names["selective_state_update"],
        names["mamba_split_conv1d_scan_combined"],
    )
    return None if None in kernels else Kernels(*kernels)


def functions_of_module(mixer: Any) -> Any:
    """The kernels behind functions that fall back on PyTorch, each for itself: all of them, or None."""
    import sys

    from zamba_compat.mamba2.fused import Kernels

    names = sys.modules[type(mixer).__module__].__dict__
    kernels = Kernels(
        names["causal_conv1d_fn"],
        names["causal_conv1d_update"],
        names["mamba2_chunk_scan"],
        names["mamba2_selective_state_update"],
        names["mamba2_split_conv1d_scan_combined"],
    )
    return kernels if all(map(_is_kernel, kernels)) else None


def _is_kernel(function: Any) -> bool:
    """Whether a decorated function of transformers runs a kernel: of a package, or of the hub.

    Where the package `kernels` is installed it is a module, whose forward a kernel of the hub replaces.
    """
    if not hasattr(function, "__code__"):
        own = vars(function).get("forward")
        original = type(function).forward
        if own is not None and getattr(own, "__func__", own) is not original:
            return True
        function = _closure(original)["func"]
    return _closure(function)["implementation"] is not function.__wrapped__


def _closure(function: Any) -> dict[str, Any]:
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return {name: cell.cell_contents for name, cell in cells}


def forward(
    read: Read, write: Write, find: Find, leave: Callable[[Any, int], bool] = never_records
) -> Callable[[Any], Any]:
    def make(original: Any) -> Any:
        def forward(self: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
            from zamba_compat.mamba2 import fused
            from zamba_compat.mamba2.cache_states import mixed
            from zamba_compat.mamba2.token_layout import numbers_documents

            given = dict(zip(("cache", "attention_mask"), args, strict=False)) | kwargs
            cache, mask = given.get("cache", given.get("cache_params")), given.get("attention_mask")
            accelerated = fused.on_accelerator(hidden_states)
            if not (accelerated or numbers_documents(mask)) or leave(cache, self.layer_idx):
                return original(self, hidden_states, *args, **kwargs)

            def run(*args: Any, **kwargs: Any) -> Any:
                kernels = find(self) if accelerated else None
                return fused.mixer_forward(*args, **kwargs, kernels=kernels, remember=cache is not None)

            return mixed(self, hidden_states, cache, mask, read, write, run)

        forward.calls_out_proj = True  # type: ignore[attr-defined]  # asked by patches/peft/mamba_targets.py
        return forward

    return make


_RELIES = (f"{MIXER}.__init__",)

ADAPTERS = (
    Adapter(
        name="zamba2-fused-path-hybrid-cache",
        library="transformers",
        since="4.49",
        fixed="5.5",
        group="numbers",
        target=f"{MIXER}.forward",
        replace=forward(read_hybrid, write_hybrid, globals_of_module),
        relies=_RELIES,
        upstream="none known",
        ends="replaced the cache",
    ),
    Adapter(
        name="zamba2-fused-path-layer-cache",
        library="transformers",
        since="5.5",
        fixed="5.14",
        group="numbers",
        target=f"{MIXER}.forward",
        replace=forward(read_layers, write_layers, globals_of_module),
        relies=_RELIES,
        upstream="none known",
        ends="replaced the cache",
    ),
    Adapter(
        name="zamba2-fused-path-numbered-states",
        library="transformers",
        since="5.14",
        fixed="5.15",
        group="numbers",
        target=f"{MIXER}.forward",
        replace=forward(read_numbered, write_numbered, globals_of_module, leave=records_past),
        relies=_RELIES,
        upstream="none known",
        ends="hides the kernels in functions",
    ),
    Adapter(
        name="zamba2-fused-path",
        library="transformers",
        since="5.15",
        group="numbers",
        target=f"{MIXER}.forward",
        replace=forward(read_numbered, write_numbered, functions_of_module, leave=records_past),
        relies=(*_RELIES, "transformers.integrations.hub_kernels:use_kernel_func_from_hub_with_fallback"),
        upstream="none known",
    ),
)
