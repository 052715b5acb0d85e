"""Fill every position of a shared block from whatever copy the checkpoint holds.

Symptom:  a checkpoint that holds a block only at a later layer comes back with random weights there; one with differing
          copies loads whichever is read last (4.x) or is untied with a warning per key (5.x); one with equal copies
          reads all of them.
Cause:    the loaders know names, not the rule that makes names aliases.
Upstream: none known.
Remove:   never: which copy counts is a decision about checkpoints that upstream does not write.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from zamba_compat._engine.around import around
from zamba_compat._engine.registry import Adapter


def load(original: Any) -> Any:
    def change(given: dict[str, Any]) -> AbstractContextManager[None]:
        from zamba_compat.runtime.hub_layout import in_hub_layout

        return in_hub_layout(given)

    return around(original, change)


ADAPTERS = tuple(
    Adapter(
        name=f"{model_type}-rehydrate",
        library="transformers",
        since="4.49",
        group="loading",
        target=f"transformers.models.{model_type}.modeling_{model_type}:{cls}._load_pretrained_model",
        replace=load,
        relies=("transformers.core_model_loading:convert_and_load_state_dict_in_model",),
        signature=(..., "model", "state_dict", ...),
        upstream="none known",
    )
    for model_type, cls in (("zamba2", "Zamba2PreTrainedModel"), ("zamba", "ZambaPreTrainedModel"))
)
