"""Save shared blocks once, their quant states with them, and models that were loaded quantized or are offloaded.

zamba2-saved-once, zamba-saved-once
Symptom:  save_pretrained of a quantized model writes orphan keys such as
          model.layers.17.shared_transformer.self_attn.q_proj.weight.quant_state.bitsandbytes__nf4, and 5.x cannot load
          the file: AttributeError "Zamba2ForCausalLM has no attribute weight". 4.49 refuses to save: "The weights
          trying to be saved contained shared tensors", the word embeddings.
Cause:    copies are recognised by their storage, and bitsandbytes makes some of a quant state's tensors anew for
          every name. 4.49 looks at the first group of tied tensors only, if the model has a device map.
Upstream: none known.
Remove:   when upstream drops the quant state of a weight that it drops.

zamba2-offloaded-save
Symptom:  save_pretrained of a model on several places: RuntimeError "The weights trying to be saved contained shared
          tensors" or NotImplementedError "Cannot copy out of meta tensor" in 4.49; the latter before 5.13 with
          everything on the disk; each position of an offloaded block is written in 5.x; "We could not revert some
          weight conversions because of offlading" in 5.14 with several shards.
Cause:    tensors on the meta device have no storage to tell aliases by. Offloading is noticed only where a map has two
          places or more. 5.14 updates the weight map with a generator of mappings.
Upstream: none known; releases from 5.13 on look for "disk" too.
Remove:   when upstream drops tied tensors by name before it saves.

zamba2-saved-again, zamba-saved-again
Symptom:  NotImplementedError from save_pretrained of any model whose checkpoint was quantized by bitsandbytes.
Cause:    saving reverts the conversions that loading made, and the deserialization of a quant state has no reverse:
          the state dict holds the serialized form already.
Upstream: none known.
Remove:   when upstream leaves these conversions out of `_weight_conversions`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from zamba_compat._engine.around import around
from zamba_compat._engine.registry import Adapter


@contextmanager
def without_copies(given: dict[str, Any]) -> Iterator[None]:
    from zamba_compat.layout.sharing import SharingMap
    from zamba_compat.runtime.bitsandbytes import once

    model = given["self"]
    sharing = SharingMap.from_config(model.config)

    def drop_copies(module: Any, state_dict: Any, *_: Any) -> Any:
        kept = once(state_dict, sharing)
        for key in [key for key in state_dict if key not in kept]:
            del state_dict[key]
        return state_dict

    if given.get("state_dict") is not None:
        given["state_dict"] = once(given["state_dict"], sharing)
    hook = model._register_state_dict_hook(drop_copies)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def from_files(given: dict[str, Any]) -> Iterator[None]:
    if given.get("state_dict") is None and hasattr(given["self"], "hf_device_map"):
        from zamba_compat.runtime.offload import state_to_save

        given["state_dict"] = state_to_save(given["self"], given["save_directory"])
        given.setdefault("save_original_format", False)  # there is no conversion to revert
    yield


@contextmanager
def as_serialized(given: dict[str, Any]) -> Iterator[None]:
    model = given["self"]
    conversions = getattr(model, "_weight_conversions", None)
    if not conversions:
        yield
        return
    model._weight_conversions = [conversion for conversion in conversions if not reads_quant_states(conversion)]
    try:
        yield
    finally:
        model._weight_conversions = conversions


def reads_quant_states(conversion: Any) -> bool:
    operations = getattr(conversion, "operations", None) or ()
    return any(type(operation).__name__ in ("Bnb4bitDeserialize", "Bnb8bitDeserialize") for operation in operations)


def adapter(name: str, change: Any, summary: str, since: str = "4.49", relies: tuple[str, ...] = ()) -> Adapter:
    model_type = name.partition("-")[0]

    def save(original: Any) -> Any:
        return around(original, change)

    return Adapter(
        name=name,
        library="transformers",
        since=since,
        group="saving",
        target=f"transformers.models.{model_type}.modeling_{model_type}:{model_type.capitalize()}PreTrainedModel.save_pretrained",
        replace=save,
        relies=relies,
        summary=summary,
        signature=("self", "save_directory", "is_main_process", "state_dict", ...),
        upstream="none known",
    )


ONCE = "Save the quant state of a shared block once, with its weight."
OFFLOADED = "Save a model whose tensors are offloaded, each shared block once."
AGAIN = "Save a model that was loaded quantized."
REVERSAL = ("transformers.core_model_loading:revert_weight_conversion",)
ADAPTERS = (
    adapter("zamba2-saved-once", without_copies, ONCE),
    adapter("zamba-saved-once", without_copies, ONCE),
    adapter("zamba2-offloaded-save", from_files, OFFLOADED),
    adapter("zamba2-saved-again", as_serialized, AGAIN, "5.0", REVERSAL),
    adapter("zamba-saved-again", as_serialized, AGAIN, "5.0", REVERSAL),
)
