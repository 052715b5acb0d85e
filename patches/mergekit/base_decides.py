"""Let the base model's architecture decide, in every run.

Symptom:  of a merge of two architectures, sometimes "Tensor ... required but not present in model", sometimes none:
          without an error the output has whichever parent's architecture was drawn.
Cause:    MergeConfiguration.referenced_models goes through a set, and the first model's architecture is taken.
Upstream: arcee-ai/mergekit#640, #641.
Remove:   when the first of the referenced models is the base model.

The base model first, then the others in the order they are written. So the tokenizer's union and the model card are
the same in every run, too. Without a base model the first one written decides. --allow-crimes is needed as before.
"""

from __future__ import annotations

from typing import Any

from zamba_compat._engine.registry import Adapter


def in_order(original: Any) -> Any:
    def referenced_models(self: Any) -> list[Any]:
        written = [self.base_model] if self.base_model else []
        for part in [self, *(self.modules or {}).values()]:
            written += [given.model for given in part.models or ()]
            written += [source.model for piece in part.slices or () for source in piece.sources]
        found = original(self)
        return sorted(found, key=written.index)

    return referenced_models


ADAPTER = Adapter(
    name="mergekit-base-decides",
    library="mergekit",
    since="0.1.5",
    group="merging",
    target="mergekit.config:MergeConfiguration.referenced_models",
    replace=in_order,
    signature=("self",),
    upstream="arcee-ai/mergekit#640, #641",
)
