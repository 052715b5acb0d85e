"""Run the Mamba2 layers right where no fused kernels are in use.

Symptom:  wrong logits without an error. Up to 4.51: with two groups (7B), at any length. Before 5.15: beyond
          chunk_size tokens, by up to 40%, and for several tokens after a cache (up to 5.4: ValueError "too
          many values to unpack"). All releases: dt is raised to time_step_min, which the fused kernels do not
          do, and padding between the tokens of a row enters the convolution.
Cause:    Zamba2MambaMixer.torch_forward repeats groups in the wrong order (up to 4.51), sums the states of
          chunks over the wrong axis, and takes whatever follows a cache for a single token.
Upstream: none known; mended step by step in 4.52.1, 5.13.0 and 5.15.0.
Remove:   when a release is right by itself about time_step_min and padding.

Where a cache lets it, the state is kept in float32: in 16 bits it loses what many small steps add.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zamba_compat._engine.registry import CACHE, Adapter, Role
from zamba_compat.mamba2.cache_states import (
    Read,
    Write,
    mixed,
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


def torch_forward(
    read: Read, write: Write, leave: Callable[[Any, int], bool] = never_records, *, squeezed: bool = False
) -> Callable[[Any], Any]:
    def make(original: Any) -> Any:
        def torch_forward(self: Any, input_states: Any, cache_params: Any = None, attention_mask: Any = None) -> Any:
            if leave(cache_params, self.layer_idx):
                return original(self, input_states, cache_params, attention_mask)
            calls = {"convolution": True, "squeezed": squeezed}
            return mixed(self, input_states, cache_params, attention_mask, read, write, **calls)

        return torch_forward

    return make


def forward(original: Any) -> Any:
    import inspect

    def shown(self: Any, hidden_states: Any, cache_params: Any = None, attention_mask: Any = None, **_: Any) -> None:
        """The parameters, where a decorator hides them."""

    # The tokens, the cache and the mask are known by their places: releases have renamed the cache.
    signature = inspect.signature(original)
    if len(signature.parameters) < 5:
        signature = inspect.signature(shown)
    tokens, past, mask = list(signature.parameters)[1:4]

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = signature.bind(self, *args, **kwargs)
        given = call.arguments
        hidden_states, cache, attention_mask = given[tokens], given.get(past), given.get(mask)
        # Other devices may run kernels from several sources; without any, this release computes right there
        # but for dt (adapter zamba2-time-step-limit) and for padding between tokens. Packed sequences need
        # kernels; newer releases refuse them without.
        packed = any(kwargs.get(name) is not None for name in ("seq_idx", "cu_seqlens"))
        if hidden_states.device.type != "cpu" or packed or records_past(cache, self.layer_idx):
            return original(*call.args, **call.kwargs)
        return mixed(self, hidden_states, cache, attention_mask, read_numbered, write_numbered)

    return forward


_CACHE = tuple(f"transformers.cache_utils:Cache.{name}" for name in ("update_conv_state", "update_recurrent_state"))
_RELIES = (f"{MIXER}.__init__", *_CACHE)
_TORCH_FORWARD = ("self", "input_states", "cache_params", "attention_mask")

ADAPTERS = (
    Adapter(
        name="zamba2-plain-scan-hybrid-cache",
        library="transformers",
        since="4.49",
        fixed="5.5",
        group="numbers",
        target=f"{MIXER}.torch_forward",
        replace=torch_forward(read_hybrid, write_hybrid, squeezed=True),
        signature=_TORCH_FORWARD,
        upstream="none known",
        ends="replaced the cache",
    ),
    Adapter(
        name="zamba2-plain-scan-layer-cache",
        library="transformers",
        since="5.5",
        fixed="5.14",
        group="numbers",
        target=f"{MIXER}.torch_forward",
        replace=torch_forward(read_layers, write_layers),
        relies=_RELIES,
        signature=_TORCH_FORWARD,
        upstream="none known",
        ends="replaced the cache",
    ),
    Adapter(
        name="zamba2-plain-scan-numbered-states",
        library="transformers",
        since="5.14",
        fixed="5.15",
        group="numbers",
        target=f"{MIXER}.torch_forward",
        replace=torch_forward(read_numbered, write_numbered, leave=records_past),
        relies=_RELIES,
        signature=_TORCH_FORWARD,
        upstream="none known",
        ends="replaced the method",
    ),
    Adapter(
        name="zamba2-plain-scan-hidden-parameters",
        library="transformers",
        since="5.15",
        fixed="5.16",
        group="numbers",
        target=f"{MIXER}.forward",
        replace=forward,
        relies=_RELIES,
        # A decorator that does not say what it wraps.
        signature=("self", "*args", "**kwargs"),
        upstream="none known",
        ends="shows the method's parameters",
    ),
    Adapter(
        name="zamba2-plain-scan",
        library="transformers",
        since="5.16",
        group="numbers",
        target=f"{MIXER}.forward",
        replace=forward,
        relies=_RELIES,
        signature=(
            "self",
            Role("hidden_states", positional=True),
            CACHE,
            Role("attention_mask", positional=True),
            "**kwargs",
        ),
        upstream="none known",
    ),
)
