"""CI runs few releases, and between them every adapter."""

from __future__ import annotations

import re
from typing import Any

from zamba_compat.patches import ADAPTERS

from _matrix import ci
from _matrix.releases import RELEASES
from zamba_compat._engine.releases import place

EVERY = ("4.1", "4.2", "5.0", "5.1", "5.2", "5.3")


class Declared:
    """What the choice reads of an adapter."""

    library, ends, relies = "transformers", "", ()

    def __init__(self, name: str, since: str, fixed: str | None, *targets: str) -> None:
        self.name, self.since, self.fixed, self.targets = name, since, fixed, targets


def chosen(*adapters: Any, history: Any = None) -> list[str]:
    return ci.chosen(EVERY, adapters, history or {})


def test_both_ends_and_the_last_of_4x_whatever_the_adapters_are() -> None:
    assert chosen() == ["4.1", "4.2", "5.3"]


def test_a_release_that_alone_applies_an_adapter_is_run() -> None:
    assert chosen(Declared("short", "5.1", "5.2", "m:f")) == ["4.1", "4.2", "5.1", "5.3"]


def test_one_release_serves_several_adapters() -> None:
    adapters = (Declared("a", "5.0", "5.2", "m:f"), Declared("b", "5.1", "5.3", "m:g"))
    assert chosen(*adapters) == ["4.1", "4.2", "5.1", "5.3"]


def test_of_releases_with_the_same_adapters_the_one_whose_targets_are_new() -> None:
    adapters = (Declared("always", "4.1", None, "m:g"), Declared("a", "5.0", "5.3", "m:f"))
    history = {"m:f": {"4.1": "1"}, "m:g": {"4.1": "1", "5.1": "2", "5.2": "3"}}
    assert chosen(*adapters, history=history) == ["4.1", "4.2", "5.1", "5.3"]


def test_every_adapter_of_this_project_runs_in_ci() -> None:
    releases = ci.releases()
    own = [each for each in ADAPTERS if each.library == "transformers"]

    def applied(among: Any) -> set[str]:
        return {e.name for e in own for one in among if place(e.since, e.fixed, e.ends, one).kind == "inside"}

    assert applied(releases) == applied(RELEASES)
    assert len(releases) <= 8 and all(re.fullmatch(r"[\d.]+", one) for one in releases)
    assert {RELEASES[0], RELEASES[-1]} <= {*releases}
