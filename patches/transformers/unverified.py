"""Check what was loaded and saved in a release that was not tested.

Symptom:  a release newer than the last tested one may change anything: a function that an adapter replaces is renamed,
          or does its work elsewhere. What comes out can be wrong without an error.
Upstream: none; not a defect.
Remove:   never. In a tested release it is off; ZAMBA_COMPAT_UNVERIFIED=ignore turns it off in any.
"""

from __future__ import annotations

import functools
from typing import Any

from zamba_compat._engine.registry import Adapter, Patch


def from_pretrained(original: Any) -> Any:
    @functools.wraps(original)
    def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
        from zamba_compat.runtime.postconditions import after_loading

        return after_loading(original(cls, *args, **kwargs), args, kwargs)

    return from_pretrained


def save_pretrained(original: Any) -> Any:
    @functools.wraps(original)
    def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> Any:
        from zamba_compat.runtime.postconditions import after_saving

        saved = original(self, *args, **kwargs)
        after_saving(self, args, kwargs)
        return saved

    return save_pretrained


def tested() -> str | None:
    """Why nothing is checked here, None in a release that was not tested."""
    from zamba_compat.runtime.postconditions import is_verified

    return "this release was tested" if is_verified() else None


ADAPTERS = tuple(
    Adapter(
        name=f"{model_type}-unverified-release",
        library="transformers",
        since="4.49",
        group="release",
        patches=(
            Patch(target=f"{module}.from_pretrained", replace=from_pretrained),
            Patch(target=f"{module}.save_pretrained", replace=save_pretrained),
        ),
        condition=tested,
        upstream="none",
    )
    for model_type, module in (
        ("zamba2", "transformers.models.zamba2.modeling_zamba2:Zamba2PreTrainedModel"),
        ("zamba", "transformers.models.zamba.modeling_zamba:ZambaPreTrainedModel"),
    )
)
