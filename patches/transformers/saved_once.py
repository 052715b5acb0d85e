"""Save the quant state of a shared block once, with its weight.

Symptom:  save_pretrained of a quantized model writes orphan keys such as
          model.layers.17.shared_transformer.self_attn.q_proj.weight.quant_state.bitsandbytes__nf4, and 5.x cannot load
          the file: AttributeError "Zamba2ForCausalLM has no attribute weight". 4.49 refuses to save: "The weights
          trying to be saved contained shared tensors", the word embeddings.
Cause:    copies are recognised by their storage, and bitsandbytes makes some of a quant state's tensors anew for
          every name. 4.49 looks at the first group of tied tensors only, if the model has a device map.
Upstream: none known.
Goes:     when upstream drops the quant state of a weight that it drops.
"""

from __future__ import annotations

import functools
from typing import Any

from zamba_compat._engine.registry import Adapter


def save(original: Any) -> Any:
    import inspect

    signature = inspect.signature(original)

    @functools.wraps(original)
    def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> Any:
        from zamba_compat.layout.sharing import SharingMap
        from zamba_compat.runtime.bitsandbytes import once

        sharing = SharingMap.from_config(self.config)

        def drop_copies(module: Any, state_dict: Any, *_: Any) -> Any:
            kept = once(state_dict, sharing)
            for key in [key for key in state_dict if key not in kept]:
                del state_dict[key]
            return state_dict

        call = signature.bind(self, *args, **kwargs)
        given = call.arguments.get("state_dict")
        if given is not None:
            call.arguments["state_dict"] = once(given, sharing)
        hook = self._register_state_dict_hook(drop_copies)
        try:
            return original(*call.args, **call.kwargs)
        finally:
            hook.remove()

    return save_pretrained


ADAPTERS = tuple(
    Adapter(
        name=f"{model_type}-saved-once",
        library="transformers",
        since="4.49",
        group="saving",
        target=f"transformers.models.{model_type}.modeling_{model_type}:{cls}.save_pretrained",
        replace=save,
        signature=("self", "save_directory", "is_main_process", "state_dict", ...),
        upstream="none known",
    )
    for model_type, cls in (("zamba2", "Zamba2PreTrainedModel"), ("zamba", "ZambaPreTrainedModel"))
)
