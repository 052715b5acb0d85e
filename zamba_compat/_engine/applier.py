"""Apply adapters to modules that have been imported, and take them back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from threading import RLock
from types import ModuleType
from typing import Literal, NamedTuple

from ..errors import AdapterError
from . import imports
from .declare import GROUPS, Adapter, Patch
from .journal import Journal, Record
from .releases import Place, import_name, installed_version, place
from .targets import MISSING, Drift, check, find, stamp, unwrap
from .verified import Verified

Group = tuple[str, str]
"""A library and a group of its adapters."""


class Failure(NamedTuple):
    """What took a group's adapters back.

    Attributes:
        verified: whether the release is one that was tested: then the installation is not what was published.
    """

    adapter: str
    target: str
    state: Literal["refused", "failed"]
    error: AdapterError
    verified: bool

    @property
    def reason(self) -> str:
        """Why, in a few words: the target without its module, and what became of it."""
        path = self.target.partition(":")[2]
        cause = self.error.__cause__
        return f"{path} {cause}" if isinstance(cause, Drift) else f"{path}: {cause}"


class Applier:
    """The bookkeeping of one registry, and the work on single modules.

    The lock guards the bookkeeping only. Conditions, factories and imports run without it: they may wait for
    the import lock of a module whose own hook waits for this lock. A replacement is made first and put in
    place only if nothing has changed meanwhile; whatever belongs to an earlier arming is dropped by its
    generation.

    In a verified release the adapters of a library stand or fall together. In any other those of a group do, with the
    groups that need it.

    Args:
        libraries: the adapters of each library, in order.
        verified: what is known of tested releases.
        judged: the groups whose results are checked after the fact: a changed target of theirs is no reason to refuse.
        disabled: the names of adapters and groups that the user switched off; asked at each arming.

    Attributes:
        armed: whether replacements are made at all.
        generation: counts armings and disarmings.
        journal: the replacements in force.
        failures: by library and group, what took its adapters back; they stay so until the next arming.
        reasons: by (generation, adapter), what its condition said.
        seen: the modules that were visited since the arming.
        switched_off: the names that `disabled` gave at the arming.
    """

    def __init__(
        self,
        libraries: Mapping[str, Sequence[Adapter]],
        *,
        verified: Verified,
        judged: frozenset[Group],
        disabled: Callable[[], frozenset[str]],
    ) -> None:
        self.lock = RLock()
        self.armed = False
        self.generation = 0
        self.journal = Journal()
        self.failures: dict[Group, Failure] = {}
        self.reasons: dict[tuple[int, str], str | None] = {}
        self.seen: dict[str, ModuleType] = {}
        self.switched_off: frozenset[str] = frozenset()
        self.verified = verified
        self.judged = judged
        self._disabled = disabled
        self._libraries = libraries
        self._located: set[tuple[int, str]] = set()
        self._stale: set[str] = set()

    def begin(self) -> int:
        """Arm, if not armed already; the generation to pass on."""
        switched_off = self._disabled()
        with self.lock:
            if not self.armed:
                self.armed = True
                self.generation += 1
                self.failures.clear()
                self.switched_off = switched_off
            return self.generation

    def end(self) -> list[Record]:
        """Disarm and undo everything; the records that other code has covered."""
        with self.lock:
            self.armed = False
            self.generation += 1
            self.seen.clear()
            return self.journal.revert(lambda record: True)

    def visit(self, name: str, module: ModuleType, generation: int, *, executed: bool) -> None:
        """Apply to one module whatever is meant for it. A failure is kept in `failures`, never raised.

        Args:
            executed: the module has just been executed, so what was replaced in it before is gone.
        """
        with self.lock:
            if generation != self.generation:
                return
            if executed:
                self.journal.forget(name)
                self.seen.pop(name, None)
        self._apply_all(name, module, generation)
        with self.lock:
            if generation == self.generation:
                self.seen[name] = module
        while self._stale:  # adapters that wrapped what a failed group has put there, and are still wanted
            with self.lock:
                again, self._stale = self._stale, set()
            for stale in again:
                found = module if stale == name else self.seen.get(stale)
                if found is not None:
                    self._apply_all(stale, found, generation)

    def place(self, adapter: Adapter) -> Place:
        """Where the installed release lies against an adapter's bounds."""
        version = installed_version(adapter.library)
        if version is None and not imports.exists(import_name(adapter.library)):
            return Place("outside", f"{adapter.library} is not installed")
        return place(adapter.since, adapter.fixed, adapter.ends, version)

    def is_disabled(self, adapter: Adapter) -> bool:
        """Whether the user switched an adapter off, by its name or its group."""
        return not self.switched_off.isdisjoint((adapter.name, adapter.group))

    def failure(self, adapter: Adapter) -> Failure | None:
        """What takes an adapter's group back, or a group that it needs."""
        groups = (adapter.group, *adapter.needs)
        return next((self.failures[adapter.library, g] for g in groups if (adapter.library, g) in self.failures), None)

    def fail(self, adapter: Adapter, target: str, cause: Exception, generation: int) -> None:
        """Take the adapters back that stand or fall with one, and keep why."""
        verified = self.verified.holds(adapter.library)
        error = _error(adapter, target, cause, verified, self.verified.releases(adapter.library))
        state: Literal["refused", "failed"] = "refused" if isinstance(cause, Drift) else "failed"
        failure = Failure(adapter.name, target, state, error, verified)
        with self.lock:
            if not self._current(generation, adapter):
                return
            for group in GROUPS if verified else (adapter.group,):
                self.failures[adapter.library, group] = failure
            taken = [r for r in self.journal.records if self.failure(r.adapter) is not None]
            slots = {record.slot for record in taken}
            others = [r for r in self.journal.records if r.slot in slots and r not in taken]
            self._stale.update(record.patch.module for record in others)
            covered = self.journal.revert(lambda record: record.slot in slots)
        warn(covered)

    def _apply_all(self, name: str, module: ModuleType, generation: int) -> None:
        for library, adapters in self._libraries.items():
            touching = [adapter for adapter in adapters if name in adapter.modules]
            if touching:
                self._locate(library, generation)
            for adapter in touching:
                if self._current(generation, adapter):
                    self._apply(adapter, name, module, generation)

    def _current(self, generation: int, adapter: Adapter) -> bool:
        return self.armed and generation == self.generation and self.failure(adapter) is None

    def _wanted(self, adapter: Adapter, generation: int) -> bool:
        kind = self.place(adapter).kind
        return kind != "outside" and not self.is_disabled(adapter) and self._current(generation, adapter)

    def _locate(self, library: str, generation: int) -> None:
        """Refuse what cannot be applied, before anything is: modules that are gone, targets that changed.

        No import would ever tell of the former.
        """
        if (generation, library) in self._located:
            return
        for adapter in self._libraries[library]:
            needed = [patch for patch in adapter.patches if not patch.optional]
            for patch in needed if self._wanted(adapter, generation) else ():
                if not imports.exists(patch.module):
                    self.fail(adapter, patch.target, Drift("is missing: there is no such module"), generation)
            self._examine(adapter, generation)
        self._located.add((generation, library))

    def _examine(self, adapter: Adapter, generation: int) -> None:
        """In a release that was not tested, compare what an adapter replaces and relies on with what is known."""
        if self.verified.holds(adapter.library) or adapter.group == "release":
            return
        if not self._wanted(adapter, generation):
            return
        changed = self.verified.changed(adapter)
        where = self.place(adapter)
        if changed and where.kind == "boundary":
            self.reasons[generation, adapter.name] = f"{where.reason}, and {changed[0]} is not what it is for"
        elif changed and (adapter.library, adapter.group) not in self.judged:
            self.fail(adapter, changed[0], Drift("has changed"), generation)

    def _apply(self, adapter: Adapter, name: str, module: ModuleType, generation: int) -> None:
        if not self._wanted(adapter, generation):
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
            self.fail(adapter, patch.target, error, generation)

    def _replace(self, adapter: Adapter, patch: Patch, module: ModuleType, generation: int) -> None:
        try:
            slot = find(module, patch.path)
        except Drift:
            if patch.optional:
                return
            raise
        while True:
            with self.lock:
                if not self._current(generation, adapter) or self.journal.has(adapter, slot):
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
                check(original, patch.signature, lenient=not self.verified.holds(adapter.library))
            replacement = patch.factory()(original)
            if replacement is None and callable(original):
                raise TypeError("its factory returned None")
            if replacement is original and not patch.add:
                raise TypeError("its factory returned the original itself")
            if not isinstance(replacement, staticmethod | classmethod | property):
                replacement = rewrap(stamp(replacement, original, adapter.name))
            with self.lock:
                if not self._current(generation, adapter):
                    return
                if slot.raw is found and not self.journal.has(adapter, slot):
                    slot.put(replacement)
                    self.journal.records.append(Record(adapter, patch, slot, saved, replacement))
                    return
            # Another thread was faster: look again.


def _error(adapter: Adapter, target: str, cause: Exception, verified: bool, tested: Sequence[str]) -> AdapterError:
    version = installed_version(adapter.library)
    where = f"adapter {adapter.name}, {adapter.library} {version}"
    drift = isinstance(cause, Drift)
    what = f"{target} {cause}" if drift else f"{target} could not be replaced: {type(cause).__name__}: {cause}"
    if verified:
        what += f", although {adapter.library} {version} is one of the tested releases." if drift else "."
        remedy = f"Install an unmodified {adapter.library}, upgrade zamba_compat, or run without it."
    else:
        what += ": this release was not tested."
        remedy = f"Install {adapter.library}=={tested[-1] if tested else adapter.since}, or upgrade zamba_compat."
    error = AdapterError(what, where=where, remedy=remedy)
    error.__cause__ = cause
    return error


def warn(covered: Iterable[Record]) -> None:
    """Name the targets that are left alone since other code has replaced them after us."""
    targets = ", ".join(record.patch.target for record in covered)
    if targets:
        warnings.warn(
            f"zamba_compat leaves as they are, since other code has replaced them meanwhile: {targets}",
            RuntimeWarning,
            stacklevel=3,
        )
