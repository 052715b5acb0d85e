"""Merge the adapters of positions that share a block each into a copy of its own.

Symptom:  where each position of a shared block has an adapter of its own, merge_and_unload and merge_adapter give a
          model whose logits are others than the adapted model's, without an error.
Cause:    each adapter is added to the weight of its own module, and the weights of all positions are one tensor.
Upstream: none known; PEFT warns of tied word embeddings only.
Remove:   when PEFT merges into copies what it finds tied.

The merged model has num_mem_blocks = number of positions: the form that keeps differing copies exactly.
"""

from __future__ import annotations

from typing import Any

from zamba_compat._engine.registry import Adapter, Patch


def _keep_apart(model: Any) -> None:
    if getattr(getattr(model, "config", None), "model_type", None) not in ("zamba2", "zamba"):
        return
    import logging

    from zamba_compat.runtime.modules import keep_apart

    if keep_apart(model):
        logging.getLogger("zamba_compat").warning(
            "Each position of a shared block has an adapter of its own, so the merged model keeps a block for each "
            "(num_mem_blocks = number of positions, more memory). One adapter per block: share_modules before PEFT."
        )


def unload(original: Any) -> Any:
    def _unload_and_optionally_merge(self: Any, merge: bool = True, *args: Any, **kwargs: Any) -> Any:
        if merge:
            _keep_apart(self.model)
        return original(self, merge, *args, **kwargs)

    return _unload_and_optionally_merge


def merge(original: Any) -> Any:
    def merge_adapter(self: Any, *args: Any, **kwargs: Any) -> Any:
        _keep_apart(self.model)
        return original(self, *args, **kwargs)

    return merge_adapter


def _adapter(owner: str, name: str, since: str, fixed: str | None, ends: str) -> Adapter:
    return Adapter(
        name=name,
        library="peft",
        since=since,
        fixed=fixed,
        group="finetuning",
        patches=(
            Patch(
                target=f"{owner}._unload_and_optionally_merge",
                replace=unload,
                signature=("self", "merge", "progressbar", "safe_merge", "adapter_names"),
            ),
            Patch(
                target="peft.tuners.tuners_utils:BaseTuner.merge_adapter",
                replace=merge,
                signature=("self", "adapter_names", "safe_merge"),
            ),
        ),
        upstream="none known",
        ends=ends,
    )


ADAPTERS = (
    _adapter(
        "peft.tuners.lora.model:LoraModel", "peft-tied-merge-lora", "0.16.0", "0.18", "continued by peft-tied-merge"
    ),
    _adapter("peft.tuners.tuners_utils:BaseTuner", "peft-tied-merge", "0.18.0", None, "fixed"),
)
