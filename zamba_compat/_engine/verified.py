"""What is known of the releases that the whole suite has passed: verified.json, written by tools/next_release.py.

The file holds, for every library, the releases and, for every target, the fingerprint it had, by the release in which
it last changed; null where a release does not have it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from .declare import Adapter
from .releases import installed_version, is_editable, place, sort_key


class Verified:
    """The record of verified releases, read when it is first asked.

    Args:
        record: the path of the file, or what it holds; None takes every release for verified.
    """

    def __init__(self, record: str | Mapping[str, Any] | None) -> None:
        self._record = record
        self._verdicts: dict[tuple[str, str | None], bool] = {}
        self._fingerprints: dict[tuple[str, str | None, str], str | None] = {}

    @cached_property
    def _libraries(self) -> Mapping[str, Any]:
        if not isinstance(self._record, str):
            return self._record or {}
        import json

        with open(self._record, encoding="utf-8") as file:
            found: dict[str, Any] = json.load(file)
        return found

    def releases(self, library: str) -> list[str]:
        """The verified releases, oldest first."""
        return sorted(self._libraries.get(library, {}).get("releases", ()), key=sort_key)

    def holds(self, library: str) -> bool:
        """Whether the installed release of a library is one of them, as it was published."""
        if self._record is None:
            return True
        version = installed_version(library)
        key = (library, version)
        if key not in self._verdicts:
            self._verdicts[key] = version in self.releases(library) and not is_editable(library)
        return self._verdicts[key]

    def known(self, adapter: Adapter, target: str) -> frozenset[str | None]:
        """The fingerprints of a target in the verified releases that an adapter is for."""
        history = self._libraries.get(adapter.library, {}).get("fingerprints", {}).get(target, {})
        found: set[str | None] = set()
        current: str | None = None
        for release in self.releases(adapter.library):
            current = history.get(release, current)
            if place(adapter.since, adapter.fixed, adapter.ends, release).kind == "inside":
                found.add(current)
        return frozenset(found)

    def changed(self, adapter: Adapter) -> tuple[str, ...]:
        """The targets, and what the adapter relies on, that are not as in any verified release it is for."""
        targets = (*adapter.targets, *adapter.relies)
        return tuple(name for name in targets if self._installed(adapter, name) not in self.known(adapter, name))

    def _installed(self, adapter: Adapter, target: str) -> str | None:
        key = (adapter.library, installed_version(adapter.library), target)
        if key not in self._fingerprints:
            from .fingerprints import fingerprint  # parses source: only where a release was not tested

            self._fingerprints[key] = fingerprint(target)
        return self._fingerprints[key]
