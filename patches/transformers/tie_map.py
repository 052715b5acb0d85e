"""Tie the shared blocks, all of them, whatever `tie_word_embeddings` says.

Symptom:  with tie_word_embeddings=false the shared blocks are untied too, silently: memory grows, and all but the
          canonical copy are reported missing. Zamba (v1) in 5.0.0: layers whose number starts with the digit of the
          first hybrid layer (2 and 25, say) are not tied.
Cause:    PreTrainedModel.get_expanded_tied_weights_keys returns {} unless the word embeddings are tied. That flag
          speaks of lm_head; the blocks are shared by definition. 5.0.0's pattern for Zamba lacks a dot.
Upstream: none known for the flag; huggingface/transformers#43623 for the pattern, fixed in 5.1.0.
Remove:   when upstream computes the ties of the blocks apart from those of the embeddings.
"""

from __future__ import annotations

from typing import Any

from zamba_compat._engine.registry import Adapter


def get_expanded_tied_weights_keys(original: Any) -> Any:
    from zamba_compat.layout.sharing import SharingMap

    def get_expanded_tied_weights_keys(self: Any, all_submodels: bool = False) -> dict[str, str]:
        if all_submodels:
            return original(self, all_submodels=True)  # type: ignore[no-any-return]
        sharing = SharingMap.from_config(self.config)
        present = {name for name, _ in self.named_parameters(remove_duplicate=False)}
        return {
            alias: canonical
            for canonical in sharing.shared_keys(prefix="")
            for alias in sharing.aliases(canonical)
            if alias != canonical and alias in present
        }

    return get_expanded_tied_weights_keys


ADAPTERS = tuple(
    Adapter(
        name=f"{model_type}-tie-map",
        library="transformers",
        since="5.0",
        group="tying",
        target=f"transformers.models.{model_type}.modeling_{model_type}:{cls}.get_expanded_tied_weights_keys",
        replace=get_expanded_tied_weights_keys,
        relies=("transformers.modeling_utils:PreTrainedModel.tie_weights",),
        signature=("self", "all_submodels"),
        upstream="huggingface/transformers#43623",
    )
    for model_type, cls in (("zamba2", "Zamba2Model"), ("zamba", "ZambaModel"))
)
