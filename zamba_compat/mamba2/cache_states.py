"""The states of Mamba2 layers in the caches of all transformers releases, and a mixer that reads and writes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Read = Callable[[Any, int], tuple[Any, Any]]
Write = Callable[[Any, int, Any, Any], None]


def read_hybrid(cache: Any, layer: int) -> tuple[Any, Any]:
    """States in a Zamba2HybridDynamicCache, which are zeros until its `has_previous_state` is set."""
    if not cache.has_previous_state:
        return None, None
    return cache.conv_states[layer], cache.ssm_states[layer]


def write_hybrid(cache: Any, layer: int, conv_state: Any, ssm_state: Any) -> None:
    cache.conv_states[layer], cache.ssm_states[layer] = conv_state, ssm_state


def read_layers(cache: Any, layer: int) -> tuple[Any, Any]:
    """States in a Cache whose layers hold one tensor of each kind."""
    if not cache.has_previous_state(layer):
        return None, None
    return cache.layers[layer].conv_states, cache.layers[layer].recurrent_states


def write_layers(cache: Any, layer: int, conv_state: Any, ssm_state: Any) -> None:
    cache.update_conv_state(conv_state, layer)
    if cache.update_recurrent_state(ssm_state, layer).dtype != ssm_state.dtype:
        # Allocated in the dtype of the convolution's state.
        cache.layers[layer].recurrent_states = ssm_state


def read_numbered(cache: Any, layer: int) -> tuple[Any, Any]:
    """States in a Cache whose layers hold dicts of tensors; Zamba2 has number 0 of each."""
    if not cache.has_previous_state(layer):
        return None, None
    return cache.layers[layer].conv_states[0], cache.layers[layer].recurrent_states[0]


def write_numbered(cache: Any, layer: int, conv_state: Any, ssm_state: Any) -> None:
    cache.update_conv_state(conv_state, layer)
    cache.update_recurrent_state(ssm_state, layer)


def never_records(cache: Any, layer: int) -> bool:
    """`records_past` of caches that cannot."""
    return False


def records_past(cache: Any, layer: int) -> bool:
    """Whether a cache keeps all inputs of the convolution, to be cropped later.

    Cropping does not bring the state back, so generation never asks for it with Zamba2, and it is left to the
    release.
    """
    return cache is not None and bool(cache.layers[layer].record_past)


def mixed(
    mixer: Any,
    hidden_states: Any,
    cache: Any,
    attention_mask: Any,
    read: Read,
    write: Write,
    forward: Any = None,
    **calls: bool,
) -> Any:
    """The mixer's output; a cache, if there is one, has moved on.

    forward: called as `mixer.mixer_forward`, which is the default.
    calls: how the release calls the mixer's modules, as `mixer_modules.Calls`; for the default alone.
    """
    import torch

    if forward is None:
        from functools import partial

        from .mixer import mixer_forward
        from .mixer_modules import Calls

        forward = partial(mixer_forward, calls=Calls(**calls, cached=cache is not None))

    held = conv_state, ssm_state = (None, None) if cache is None else read(cache, mixer.layer_idx)
    if ssm_state is not None and torch.is_grad_enabled():
        # The cache is written in place, and the graph still needs what it held.
        ssm_state = ssm_state.clone()
    output, conv_state, ssm_state = forward(
        mixer,
        hidden_states,
        conv_state=conv_state,
        ssm_state=ssm_state,
        attention_mask=attention_mask,
        # Every release writes a cache in place.
        overwrite=True,
    )
    if cache is not None and not (conv_state is held[0] and ssm_state is held[1]):  # else it was written in place
        write(cache, mixer.layer_idx, conv_state, ssm_state)
    return output
