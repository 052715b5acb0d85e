"""Which releases CI runs: few, and between them every adapter."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from _matrix.releases import RELEASES
from zamba_compat._engine.declare import Adapter
from zamba_compat._engine.releases import place

RECORD = Path(__file__).resolve().parents[2] / "patches" / "verified.json"


def releases() -> list[str]:
    """Those of this project, oldest first."""
    from zamba_compat.patches import ADAPTERS

    history = json.loads(RECORD.read_text(encoding="utf-8"))["transformers"]["fingerprints"]
    return chosen(RELEASES, ADAPTERS, history)


def chosen(every: Sequence[str], adapters: Iterable[Adapter], history: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The oldest and the newest release, the last of 4.x, and what they leave out of the adapters.

    Always the release that applies the most adapters that no chosen one does; of those, the one with the most targets
    (and functions relied on) as no chosen one has them, and of those the newest. A release whose adapters are all
    applied by others is left to `make matrix`.

    Args:
        every: releases of transformers, oldest first.
        history: target -> release -> the fingerprint that it has from there on (patches/verified.json).
    """
    own = [adapter for adapter in adapters if adapter.library == "transformers"]
    applied = {release: _applied(release, own) for release in every}
    seen = {
        release: {
            (target, _fingerprint(history.get(target, {}), every, release))
            for adapter in own
            if adapter.name in applied[release]
            for target in (*adapter.targets, *adapter.relies)
        }
        for release in every
    }
    found = {every[0], every[-1], *[release for release in every if release.startswith("4.")][-1:]}
    while left := set().union(*applied.values()) - set().union(*(applied[release] for release in found)):
        known = set().union(*(seen[release] for release in found))
        found.add(max(reversed(every), key=lambda one: (len(applied[one] & left), len(seen[one] - known))))
    return [release for release in every if release in found]


def _applied(release: str, adapters: Iterable[Adapter]) -> set[str]:
    return {each.name for each in adapters if place(each.since, each.fixed, each.ends, release).kind == "inside"}


def _fingerprint(history: Mapping[str, Any], every: Sequence[str], release: str) -> Any:
    until = every[: every.index(release) + 1]
    return next((history[one] for one in reversed(until) if one in history), None)
