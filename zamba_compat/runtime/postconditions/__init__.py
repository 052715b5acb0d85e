"""What must hold after loading and saving, whatever a release does inside.

In a release of transformers that was not tested these checks follow every `from_pretrained` and `save_pretrained` of
Zamba and Zamba2; `zamba-compat doctor --check CHECKPOINT` runs them in any. They look at what the public functions
return and write, and at nothing that a release may rename.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from zamba_compat.errors import UnverifiedReleaseError
from zamba_compat.settings import setting

registry: Any = None
"""The registry of all adapters, handed in by `zamba_compat.registry` when it makes it."""
_judged: dict[str, list[Fault]] = {}


class Fault(NamedTuple):
    """Something that does not hold.

    Attributes:
        group: the group of adapters whose work it is.
        what: the fault, a clause without a full stop.
    """

    group: str
    what: str


def is_verified() -> bool:
    """Whether the installed release of transformers is one that the whole suite has passed."""
    return bool(registry.is_verified("transformers"))


def faults_of(model: Any, source: Mapping[str, Any]) -> list[Fault]:
    """Everything that does not hold for a model that was just loaded.

    Args:
        model: a Zamba or Zamba2 model of any head.
        source: what it was loaded from: the arguments of `from_pretrained`, by name.

    Raises:
        CheckpointError: the files do not hold a model.
    """
    from . import held

    found = [*held.shared_once(model), *held.quantized(model, source), *held.rotary(model), *held.placed(model)]
    if not found:
        found += held.as_stored(model, source)
    return found + computed_faults(model)


def computed_faults(model: Any) -> list[Fault]:
    """What the release computes wrong in a small model, found once a process."""
    from . import computed

    if model.config.model_type != "zamba2":
        return []
    if "zamba2" not in _judged:
        found = computed.faults()
        if found and _without_changed_adapters():
            found = computed.faults()
        _judged["zamba2"] = found
    return _judged["zamba2"]


def after_loading(loaded: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Check what `from_pretrained` returns, and return it.

    Raises:
        UnverifiedReleaseError: something does not hold, and the setting `unverified` is "error".
    """
    if setting("unverified") != "ignore":
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        named = dict(zip(("pretrained_model_name_or_path",), args, strict=False))
        _report(faults_of(model, {**named, **kwargs}), "loading")
    return loaded


def after_saving(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Check what `save_pretrained` has written.

    Raises:
        UnverifiedReleaseError: something does not hold, and the setting `unverified` is "error".
    """
    given = {**dict(zip(("save_directory", "is_main_process", "state_dict"), args, strict=False)), **kwargs}
    if setting("unverified") != "ignore" and given.get("is_main_process", True):
        from . import held

        _report(held.written(model, given["save_directory"], given.get("state_dict")), "saving")


def _report(faults: Sequence[Fault], doing: str) -> None:
    if not faults:
        return
    verdict = registry.verdict("transformers")
    said = "; ".join(f"{fault.what} (group {fault.group}{_why(verdict, fault.group)})" for fault in faults[:3])
    more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
    error = UnverifiedReleaseError(
        f"after {doing}, {said}{more}.",
        where=f"transformers {verdict.installed}, which was not tested",
        remedy=f"Install transformers=={verdict.tested}, or a newer zamba_compat; ZAMBA_COMPAT_UNVERIFIED=warn goes on "
        "all the same.",
    )
    if setting("unverified") == "warn":
        import logging

        logging.getLogger("zamba_compat").warning("%s", error)
        return
    raise error


def _why(verdict: Any, group: str) -> str:
    if group in verdict.off:
        return f", which is off: {verdict.off[group]}"
    return f"; changed: {', '.join(verdict.changed_functions)}" if verdict.changed else ""


def _without_changed_adapters() -> bool:
    """Take group numbers back where it was applied to changed code: the release may be right by itself."""
    verdict = registry.verdict("transformers")
    applied = [s for s in registry.status() if s.group == "numbers" and s.state == "applied" and s.changed]
    if verdict.verified or not applied:
        return False
    registry.refuse("transformers", "numbers", "what it computes is wrong on this release")
    return True
