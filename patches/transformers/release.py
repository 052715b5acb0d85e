"""Say clearly what a transformers release outside the supported range can do.

Symptom:  without Zamba2 (4.48 and older, and forks that dropped it): "does not recognize this architecture", or
          KeyError: 'zamba2'. Newer than the pins: nothing, and nothing is known.
Upstream: none; not a defect.
Goes:     never; NEWEST and the lower bound of zamba2-newer-release move with the pins.
"""

from __future__ import annotations

import functools
from typing import Any

from zamba_compat.adapters import Adapter
from zamba_compat.errors import UnsupportedReleaseError

OLDEST, NEWEST = "4.49.0", "5.23"
REMEDY = f"Install transformers>={OLDEST.removesuffix('.0')}."


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
                raise UnsupportedReleaseError(release_fault() or f"transformers has no {key}. {REMEDY}") from None
            raise

    return __getitem__


def probed_from_pretrained(original: Any) -> Any:
    told: set[str] = set()

    @functools.wraps(original)
    def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
        from importlib.metadata import version

        release = version("transformers")
        if release not in told:
            told.add(release)
            import logging

            from zamba_compat.diagnostics import check_shape
            from zamba_compat.published import PUBLISHED

            faults = [f"{c.shape}: {c.fault}" for c in (check_shape(*item) for item in PUBLISHED.items()) if c.fault]
            logger = logging.getLogger("zamba_compat")
            if faults:
                logger.warning(
                    "transformers %s is newer than the adapters (%s) and not supported yet (%s). "
                    "Install transformers<=%s.*, or a newer zamba-compat.",
                    release,
                    NEWEST,
                    "; ".join(faults),
                    NEWEST,
                )
            else:
                logger.warning(
                    "transformers %s is newer than the adapters (%s), which stay off. It ties the blocks of the "
                    "published shapes right by itself; layouts other than the hub's and the CPU path are untested.",
                    release,
                    NEWEST,
                )
        return original(cls, *args, **kwargs)

    return from_pretrained


ADAPTERS = (
    Adapter(
        name="zamba2-absent",
        requires="transformers>=4.30,<7",
        target="transformers.models.auto.configuration_auto:_LazyConfigMapping.__getitem__",
        replace=unknown_architecture,
        condition=lambda: "this release has Zamba2" if release_fault() is None else None,
        upstream="none: added in 4.49.0",
        ends=None,
    ),
    Adapter(
        name="zamba2-newer-release",
        requires="transformers>=5.24,<7",
        target="transformers.models.zamba2.modeling_zamba2:Zamba2PreTrainedModel.from_pretrained",
        replace=probed_from_pretrained,
        upstream="none",
        ends=None,
    ),
)
