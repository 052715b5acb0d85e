"""Save a model whose tensors are offloaded, each shared block once.

Symptom:  save_pretrained of a model on several places: RuntimeError "The weights trying to be saved contained shared
          tensors" or NotImplementedError "Cannot copy out of meta tensor" in 4.49; the latter before 5.13 with
          everything on the disk; each position of an offloaded block is written in 5.x; "We could not revert some
          weight conversions because of offlading" in 5.14 with several shards.
Cause:    tensors on the meta device have no storage to tell aliases by. Offloading is noticed only where a map has two
          places or more. 5.14 updates the weight map with a generator of mappings.
Upstream: none known; releases from 5.13 on look for "disk" too.
Goes:     when upstream drops tied tensors by name before it saves.
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
        call = signature.bind(self, *args, **kwargs)
        given = call.arguments
        if given.get("state_dict") is None and hasattr(self, "hf_device_map"):
            from zamba_compat.runtime.offload import state_to_save

            given["state_dict"] = state_to_save(self, given["save_directory"])
            if "save_original_format" in signature.parameters:  # there is no conversion to revert
                given.setdefault("save_original_format", False)
        return original(*call.args, **call.kwargs)

    return save_pretrained


ADAPTER = Adapter(
    name="zamba2-offloaded-save",
    library="transformers",
    since="4.49",
    group="saving",
    target="transformers.models.zamba2.modeling_zamba2:Zamba2PreTrainedModel.save_pretrained",
    replace=save,
    signature=("self", "save_directory", "is_main_process", "state_dict", ...),
    upstream="none known",
)
