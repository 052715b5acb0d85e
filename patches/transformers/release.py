"""Say clearly that a transformers release has no Zamba2.

Symptom:  without Zamba2 (4.48 and older, and forks that dropped it): "does not recognize this architecture", or
          KeyError: 'zamba2'.
Upstream: none; not a defect.
Remove:   never.
"""

from __future__ import annotations

from typing import Any

from zamba_compat._engine.registry import Adapter
from zamba_compat.errors import UnsupportedReleaseError

REMEDY = "Install transformers>=4.49."


def release_fault() -> str | None:
    """Why the installed transformers cannot run Zamba2 at all, or None. Nothing is imported."""
    import importlib.util
    from importlib.metadata import version
    from pathlib import Path

    spec = importlib.util.find_spec("transformers")
    if spec is None:
        return f"transformers is not installed. {REMEDY}"
    folders = spec.submodule_search_locations or ()
    if any((Path(folder) / "models" / "zamba2" / "modeling_zamba2.py").exists() for folder in folders):
        return None
    return f"transformers {version('transformers')} has no Zamba2. {REMEDY}"


def unknown_architecture(original: Any) -> Any:
    def __getitem__(self: Any, key: str) -> Any:
        try:
            return original(self, key)
        except KeyError:
            if key in ("zamba2", "zamba"):
                what = (release_fault() or f"transformers has no {key}. {REMEDY}").removesuffix(f" {REMEDY}")
                raise UnsupportedReleaseError(what, remedy=REMEDY) from None
            raise

    return __getitem__


ADAPTER = Adapter(
    name="zamba2-absent",
    library="transformers",
    since="4.30",
    group="release",
    target="transformers.models.auto.configuration_auto:_LazyConfigMapping.__getitem__",
    replace=unknown_architecture,
    condition=lambda: "this release has Zamba2" if release_fault() is None else None,
    upstream="none: added in 4.49.0",
)
