"""Keep the samples of a packed row apart (DataCollatorWithFlattening, padding-free training).

Symptom:  logits off by 80% and more, without an error: with position_ids that restart, a sample's state and
          convolution go on from the one before it, up to 5.1 its attention too, and in later releases with a cache,
          which is the default. With seq_idx: ValueError from 5.15 on where no kernels are installed.
Cause:    Zamba2MambaMixer reads seq_idx alone, from 5.15 on, and the collator gives none by default;
          masks for attention are made of position_ids from 5.2 on, and only without a cache.
Upstream: none known.
Remove:   when a release derives seq_idx from position_ids and computes with it on every path.

A cache makes no sense with such a row: none is returned, and one that is given is refused.
"""

from __future__ import annotations

from typing import Any

from zamba_compat._engine.registry import Adapter, Patch

MODULE = "transformers.models.zamba2.modeling_zamba2"
_NAMES = ("input_ids", "attention_mask", "position_ids", "past_key_values", "inputs_embeds", "use_cache")


def forward(original: Any) -> Any:
    import functools

    @functools.wraps(original)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip(_NAMES, args, strict=False)) | kwargs
        if len(args) > len(_NAMES) or not any(
            given.get(name) is not None for name in ("position_ids", "seq_idx", "cu_seqlens", "cu_seq_lens_q")
        ):
            return original(self, *args, **kwargs)
        tokens = given.get("input_ids")
        embedded = given.get("inputs_embeds") if tokens is None else tokens
        if embedded is None or embedded.shape[1] == 1:
            return original(self, *args, **kwargs)
        from zamba_compat.mamba2.packed_samples import arranged

        past = next((given.pop(name) for name in ("past_key_values", "cache") if given.get(name) is not None), None)
        found = arranged(embedded.shape[:2], given, past)
        if found is None:
            return original(self, *args, **kwargs)
        if past is not None:
            found["cache" if "cache" in kwargs else "past_key_values"] = past
        return original(self, **found)

    return forward


def causal_mask(original: Any) -> Any:
    def _update_causal_mask(self: Any, attention_mask: Any, input_tensor: Any, *args: Any, **kwargs: Any) -> Any:
        numbers = _numbers(attention_mask)
        if numbers is None:
            return original(self, attention_mask, input_tensor, *args, **kwargs)
        from zamba_compat.mamba2.packed_samples import mask_for

        return mask_for(self.config._attn_implementation, numbers, input_tensor.dtype, reads_positions=False)

    return _update_causal_mask


def created_mask(original: Any) -> Any:
    def create_causal_mask(*args: Any, **kwargs: Any) -> Any:
        numbers = _numbers(kwargs.get("attention_mask"))
        if numbers is None:
            return original(*args, **kwargs)
        from zamba_compat.mamba2.packed_samples import mask_for

        embedded = kwargs["inputs_embeds"] if "inputs_embeds" in kwargs else kwargs["input_embeds"]
        return mask_for(kwargs["config"]._attn_implementation, numbers, embedded.dtype)

    return create_causal_mask


def _numbers(attention_mask: Any) -> Any:
    """A mask that tells samples apart, or None."""
    if attention_mask is None or not hasattr(attention_mask, "dim") or attention_mask.dim() != 2:
        return None
    from zamba_compat.mamba2.token_layout import numbers_documents

    return attention_mask if numbers_documents(attention_mask) else None


_MODEL = Patch(target=f"{MODULE}:Zamba2Model.forward", replace=forward)

ADAPTERS = (
    Adapter(
        name="zamba2-packed-samples-own-mask",
        library="transformers",
        since="4.49",
        fixed="5.2",
        group="numbers",
        patches=(
            _MODEL,
            Patch(
                target=f"{MODULE}:Zamba2Model._update_causal_mask",
                replace=causal_mask,
                signature=("self", "attention_mask", "input_tensor", "cache_position"),
            ),
        ),
        upstream="none known",
        ends="makes the mask elsewhere",
    ),
    Adapter(
        name="zamba2-packed-samples",
        library="transformers",
        since="5.2",
        group="numbers",
        patches=(_MODEL, Patch(target=f"{MODULE}:create_causal_mask", replace=created_mask)),
        upstream="none known",
    ),
)
