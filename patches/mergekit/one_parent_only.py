"""Refuse a tensor that one parent has and another lacks.

Symptom:  it goes into the output as it is, unmerged, without a word.
Cause:    what is not in all parents counts as optional, and of an optional tensor the only one found is passed through.
Upstream: none known.
Goes:     when mergekit refuses, or asks.

As before: names that stand for one another (an untied lm_head and the embedding), buffers that the model computes by
itself, what no parent has, what is read from one model only. Where the base's lm_head is tied to its embedding, an
lm_head that only another parent stores is left out: the model ties it anew.
"""

from __future__ import annotations

from typing import Any

from zamba_compat.adapters import Adapter
from zamba_compat.errors import CheckpointError

# Written by old releases; computed, never trained.
BUFFERS = (".inv_freq", "position_ids", "token_type_ids", ".masked_bias", ".attn.bias", ".attention.bias")


def _stores(model: Any, weight: Any, trust_remote_code: bool) -> bool:
    from mergekit.architecture.conversion import can_convert_checkpoint_keys
    from mergekit.io.tasks import LoaderCache

    stored = LoaderCache().get(model).index.tensor_paths
    names = [weight.name, *(weight.aliases or ()), *(weight.tied_names or ())]
    if any(name in stored for name in names):
        return True
    model_type = model.config(trust_remote_code=trust_remote_code).model_type
    return any(can_convert_checkpoint_keys(model_type, set(stored), name) for name in names)


def refuse(original: Any) -> Any:
    def plan_tensor(self: Any, weight: Any, weights_in: Any, models: Any, cfg_reader: Any) -> None:
        if len(models) > 1 and not weight.name.endswith(BUFFERS):
            trusted = self.options.trust_remote_code
            having = [model for model, own in zip(models, weights_in, strict=False) if _stores(model, own, trusted)]
            lacking = [model for model in models if model not in having]
            if having and lacking:
                head = weight.name in ("lm_head.weight", "lm_head.bias")
                if head and getattr(self.out_model_config, "tie_word_embeddings", False):
                    return
                raise CheckpointError(
                    f"{', '.join(map(str, having))} has it and {', '.join(map(str, lacking))} has not: "
                    "it cannot be merged.",
                    where=weight.name,
                    remedy="Merge models that hold the same tensors; where a merge by SLERP is to keep the base's, let "
                    "no filter of t match it.",
                )
        original(self, weight, weights_in, models, cfg_reader)

    return plan_tensor


ADAPTER = Adapter(
    name="mergekit-one-parent-only",
    requires="mergekit>=0.1.5,<0.1.6",
    target="mergekit.plan:MergePlanner.plan_tensor",
    replace=refuse,
    signature=("self", "weight", "weights_in", "models", "cfg_reader"),
    upstream="none known",
    ends=None,
)
