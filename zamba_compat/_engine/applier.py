"""Apply adapters to modules that have been imported, and take them back."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from threading import RLock
from types import ModuleType
from typing import Literal, NamedTuple

from ..errors import AdapterError
from . import imports
from .declare import Adapter, Patch
from .journal import Journal, Record
from .releases import Verdict, import_name, installed_version, judge
from .targets import MISSING, Drift, check, find, stamp, unwrap


class Failure(NamedTuple):
    """What took the adapters of one library back."""

    adapter: str
    state: Literal["refused", "failed"]
    error: AdapterError


class Applier:
    """The bookkeeping of one registry, and the work on single modules.

    The lock guards the bookkeeping only. Conditions, factories and imports run without it: they may wait for
    the import lock of a module whose own hook waits for this lock. A replacement is made first and put in
    place only if nothing has changed meanwhile; whatever belongs to an earlier arming is dropped by its
    generation.

    Attributes:
        armed: whether replacements are made at all.
        generation: counts armings and disarmings.
        journal: the replacements in force.
        failures: by library, what took its adapters back; they stay so until the next arming.
        reasons: by (generation, adapter), what its condition said.
        seen: the modules that were visited since the arming.
    """

    def __init__(self, libraries: Mapping[str, Sequence[Adapter]]) -> None:
        self.lock = RLock()
        self.armed = False
        self.generation = 0
        self.journal = Journal()
        self.failures: dict[str, Failure] = {}
        self.reasons: dict[tuple[int, str], str | None] = {}
        self.seen: dict[str, ModuleType] = {}
        self._libraries = libraries
        self._located: set[tuple[int, str]] = set()

    def begin(self) -> int:
        """Arm, if not armed already; the generation to pass on."""
        with self.lock:
            if not self.armed:
                self.armed = True
                self.generation += 1
                self.failures.clear()
            return self.generation

    def end(self) -> list[Record]:
        """Disarm and undo everything; the records that other code has covered."""
        with self.lock:
            self.armed = False
            self.generation += 1
            self.seen.clear()
            return self.journal.revert(lambda record: True)

    def visit(self, name: str, module: ModuleType, generation: int, *, executed: bool) -> None:
        """Apply to one module whatever is pinned for it. A failure is kept in `failures`, never raised.

        Args:
            executed: the module has just been executed, so what was replaced in it before is gone.
        """
        with self.lock:
            if generation != self.generation:
                return
            if executed:
                self.journal.forget(name)
                self.seen.pop(name, None)
        for library, adapters in self._libraries.items():
            touching = [adapter for adapter in adapters if name in adapter.modules]
            if touching:
                self._locate(library, generation)
            for adapter in touching:
                if self._current(generation, library):
                    self._apply(adapter, name, module, generation)
        with self.lock:
            if generation == self.generation:
                self.seen[name] = module

    def _current(self, generation: int, library: str) -> bool:
        return self.armed and generation == self.generation and library not in self.failures

    def _locate(self, library: str, generation: int) -> None:
        """Refuse targets whose whole module is gone: no import would ever tell."""
        if (generation, library) in self._located or not self._current(generation, library):
            return
        for adapter in self._libraries[library]:
            needed = [patch for patch in adapter.patches if not patch.optional]
            for patch in needed if place(adapter).kind == "inside" else ():
                if not imports.exists(patch.module):
                    self._fail(adapter, patch, Drift("is missing: there is no such module"), generation)
                    return
        self._located.add((generation, library))

    def _apply(self, adapter: Adapter, name: str, module: ModuleType, generation: int) -> None:
        if place(adapter).kind != "inside":
            return
        patches = [patch for patch in adapter.patches if patch.module == name]
        patch = patches[0]
        key = (generation, adapter.name)
        try:
            if adapter.condition is not None and key not in self.reasons:
                self.reasons.setdefault(key, adapter.condition())
            if self.reasons.get(key) is None:
                for patch in patches:
                    self._replace(adapter, patch, module, generation)
        except Exception as error:
            self._fail(adapter, patch, error, generation)

    def _replace(self, adapter: Adapter, patch: Patch, module: ModuleType, generation: int) -> None:
        try:
            slot = find(module, patch.path)
        except Drift:
            if patch.optional:
                return
            raise
        while True:
            with self.lock:
                if not self._current(generation, adapter.library) or self.journal.has(adapter, slot):
                    return
                if self.journal.resume(adapter, slot):
                    return
                found, saved = slot.raw, self.journal.original(slot)
            raw = slot.inherited if saved is MISSING else saved
            if patch.add and saved is not MISSING:
                raise Drift("exists already")
            if raw is MISSING and not patch.add:
                if patch.optional:
                    return
                raise Drift("is missing")
            original, rewrap = unwrap(None if raw is MISSING else raw, slot)
            if patch.signature is not None:
                check(original, patch.signature)
            replacement = patch.factory()(original)
            if replacement is None and callable(original):
                raise TypeError("its factory returned None")
            if replacement is original and not patch.add:
                raise TypeError("its factory returned the original itself")
            if not isinstance(replacement, staticmethod | classmethod | property):
                replacement = rewrap(stamp(replacement, original, adapter.name))
            with self.lock:
                if not self._current(generation, adapter.library):
                    return
                if slot.raw is found and not self.journal.has(adapter, slot):
                    slot.put(replacement)
                    self.journal.records.append(Record(adapter, patch, slot, saved, replacement))
                    return
            # Another thread was faster: look again.

    def _fail(self, adapter: Adapter, patch: Patch, cause: Exception, generation: int) -> None:
        pinned = " and ".join(map(str, adapter.pins))
        releases = ", ".join(f"{pin.library} {installed_version(pin.library)}" for pin in adapter.pins)
        drift = isinstance(cause, Drift)
        error = AdapterError(
            f"{patch.target} {cause}, although this release is within {pinned}."
            if drift
            else f"{patch.target} could not be replaced: {type(cause).__name__}: {cause}.",
            where=f"adapter {adapter.name}, {releases}",
            remedy=f"Install an unmodified {pinned}, upgrade zamba_compat, or run without it.",
        )
        error.__cause__ = cause
        with self.lock:
            if not self._current(generation, adapter.library):
                return
            self.failures[adapter.library] = Failure(adapter.name, "refused" if drift else "failed", error)
            covered = self.journal.revert(lambda record: record.adapter.library == adapter.library)
        warn(covered)


def place(adapter: Adapter) -> Verdict:
    """Where the installed releases lie against the requirements; of several, the first not inside."""
    for pin in adapter.pins:
        version = installed_version(pin.library)
        if version is not None:
            verdict = judge(pin, version, adapter.ends)
        elif imports.exists(import_name(pin.library)):
            verdict = Verdict("unpinned", f"the release of {pin.library} cannot be told")
        else:
            verdict = Verdict("outside", f"{pin.library} is not installed")
        if verdict.kind != "inside":
            return verdict
    return Verdict("inside")


def warn(covered: Iterable[Record]) -> None:
    """Name the targets that are left alone since other code has replaced them after us."""
    targets = ", ".join(record.patch.target for record in covered)
    if targets:
        warnings.warn(
            f"zamba_compat leaves as they are, since other code has replaced them meanwhile: {targets}",
            RuntimeWarning,
            stacklevel=3,
        )
