"""Generate from embeddings.

Symptom:  ValueError: You passed `inputs_embeds` to `.generate()`, but the model class Zamba2ForCausalLM
          doesn't have its forwarding implemented.
Cause:    generate looks for a parameter inputs_embeds of Zamba2ForCausalLM.prepare_inputs_for_generation,
          which 5.15.0 hid in **kwargs. Nothing else is missing.
Upstream: none known.
Remove:   when the method names the parameter again, or generate looks elsewhere.
"""

from __future__ import annotations

from typing import Any

from zamba_compat._engine.registry import Adapter


def prepare_inputs_for_generation(original: Any) -> Any:
    import inspect

    def prepare_inputs_for_generation(self: Any, input_ids: Any, inputs_embeds: Any = None, **kwargs: Any) -> Any:
        return original(self, input_ids, inputs_embeds=inputs_embeds, **kwargs)

    # Otherwise the replacement shows the original's parameters.
    prepare_inputs_for_generation.__signature__ = inspect.signature(  # type: ignore[attr-defined]
        prepare_inputs_for_generation
    )
    return prepare_inputs_for_generation


ADAPTER = Adapter(
    name="zamba2-embeddings-generation",
    library="transformers",
    since="5.15",
    group="numbers",
    target="transformers.models.zamba2.modeling_zamba2:Zamba2ForCausalLM.prepare_inputs_for_generation",
    replace=prepare_inputs_for_generation,
    signature=("self", "input_ids", "**kwargs"),
    upstream="none known",
)
