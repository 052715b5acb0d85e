"""Keep the base model's weight where SLERP is given no t, and where a slice has one model only.

Symptom:  RuntimeError "Missing required parameter t", and a ValueError for a slice with one source: a merge of selected
          parts has to name all others with t = 0, which fails where their shapes differ.
Cause:    t is a required parameter, and SLERP demands two models of every slice.
Upstream: arcee-ai/mergekit#640, #641.
Remove:   when t is optional.

A slice with one source is that source's, as in mergekit 0.1.4. Such tensors go through mergekit's own passthrough.
"""

from __future__ import annotations

from typing import Any

from zamba_compat._engine.registry import Adapter, Patch


def keep_base(original: Any) -> Any:
    def plan_tensor(self: Any, weight: Any, weights_in: Any, models: Any, cfg_reader: Any) -> None:
        from zamba_compat.merging.mergekit.presence import has_t

        # After the last layer there is one weight for each source of the first slice, and a model for each of the last.
        weights_in = [*weights_in, *[weight] * (len(models) - len(weights_in))]
        kept = None
        if self._method.spec.name == "slerp":
            if len(models) == 1:
                (kept,) = models
            elif cfg_reader.base_model in models and not has_t(weight.name, cfg_reader):
                kept = cfg_reader.base_model
        if kept is None:
            original(self, weight, weights_in, models, cfg_reader)
            return
        from mergekit import merge_methods

        slerp, self._method = self._method, merge_methods.get("passthrough")
        try:
            original(self, weight, [weights_in[models.index(kept)]], [kept], cfg_reader)
        finally:
            self._method = slerp

    return plan_tensor


class _TwoOrOne:
    """A merge method that takes a slice with one source."""

    def __init__(self, method: Any) -> None:
        self._method = method

    def validate_inputs(self, models: Any, *args: Any, **kwargs: Any) -> None:
        if len(models) > 1:
            self._method.validate_inputs(models, *args, **kwargs)


def allow_single(original: Any) -> Any:
    def normalize_config(self: Any) -> None:
        method = self._method
        if method.spec.name == "slerp":
            self._method = _TwoOrOne(method)
        try:
            original(self)
        finally:
            self._method = method

    return normalize_config


ADAPTER = Adapter(
    name="mergekit-optional-t",
    library="mergekit",
    since="0.1.5",
    group="merging",
    patches=(
        Patch(
            target="mergekit.plan:MergePlanner.plan_tensor",
            replace=keep_base,
            signature=("self", "weight", "weights_in", "models", "cfg_reader"),
        ),
        Patch(target="mergekit.plan:MergePlanner.normalize_config", replace=allow_single, signature=("self",)),
    ),
    upstream="arcee-ai/mergekit#640, #641",
)
