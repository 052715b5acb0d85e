"""Fill every position of a shared block from whatever copy the checkpoint holds.

Symptom:  a checkpoint that holds a block only at a later layer comes back with random weights there; one with differing
          copies loads whichever is read last (4.x) or is untied with a warning per key (5.x); one with equal copies
          reads all of them.
Cause:    the loaders know names, not the rule that makes names aliases.
Upstream: none known.
Goes:     never: which copy counts is a decision about checkpoints that upstream does not write.
"""

from __future__ import annotations

import functools
from contextlib import ExitStack
from typing import Any

from zamba_compat._engine.registry import Adapter


def load(original: Any) -> Any:
    import inspect

    signature = inspect.signature(original)

    @functools.wraps(original)
    def _load_pretrained_model(*args: Any, **kwargs: Any) -> Any:
        from zamba_compat.runtime.hub_layout import LoaderCall, hub_layout

        call = signature.bind(*args, **kwargs)
        given = call.arguments
        with ExitStack() as opened:
            tensors = hub_layout(LoaderCall.of(given), opened)
            if tensors is not None:
                given["state_dict"] = tensors
                replaced = {"sharded_metadata", "expected_keys"}
                if "load_config" not in given:  # 4.50 to 4.52 would read the files too, if they are several
                    replaced.add("checkpoint_files")
                given.update(dict.fromkeys(replaced & given.keys()))
                if "loaded_keys" in given:
                    given["loaded_keys"] = list(tensors)
            return original(*call.args, **call.kwargs)

    return _load_pretrained_model


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
