"""The adapter engine: apply version-pinned adapters when their targets are imported, and take them back.

An adapter is declared with `Adapter`, or with several `Patch`es. A `Registry` arms them, in order:

- What is imported already is patched at once, the rest right after it is imported. Nothing is imported.
- The adapters of one library stand or fall together. A target that is missing or has other parameters than
  its pin says, inside the pinned range, takes all adapters of that library back and is an `AdapterError`.
- The error is raised where a *guard* is imported: a module that only users of Zamba need, by default each
  target module with "zamba" in its own name. Other modules import undisturbed; an error found in one is kept
  for the next guard, or raised at once if a guard is loaded already. A guard is refused again at every
  attempt.
- Two adapters of a library may patch the same attribute: the later one gets the earlier one's replacement.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any, Literal, NamedTuple

from ._engine.applier import Applier, place, warn
from ._engine.declare import Adapter, Patch
from ._engine.imports import ImportWatcher, loaded
from ._engine.releases import installed_version
from .errors import AdapterError

__all__ = ["Adapter", "AdapterStatus", "Patch", "Registry", "State"]

State = Literal["applied", "armed", "disarmed", "not needed", "unpinned", "refused", "failed"]


class AdapterStatus(NamedTuple):
    """What became of one adapter.

    Attributes:
        installed: the installed release of `library`, None if there is none or it cannot be told.
        state: "applied" to every module of its that is imported; "armed": will be, when one is; "disarmed";
            "not needed": the release is outside the range, or the library is absent, or the adapter's
            condition says so; "unpinned": nothing is known about the release, newer than the pins or a
            pre-release of a bound; "refused": a target is not what the pin says; "failed": a replacement
            could not be made. With either, the library's other adapters are "refused" too.
        reason: why, empty where the state says it all.
    """

    name: str
    library: str
    requires: str
    installed: str | None
    state: State
    reason: str
    upstream: str
    summary: str
    targets: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON types."""
        return {**self._asdict(), "targets": list(self.targets)}


class Registry:
    """An ordered set of adapters that are armed and taken back together. Safe to use from several threads.

    Args:
        adapters: names unique; the same target only in adapters of one library.
        guards: the modules whose import a failure refuses. Without any, every target module is one.

    Raises:
        AdapterError: two adapters share a name, or a target across libraries.
    """

    def __init__(self, adapters: Sequence[Adapter], *, guards: Iterable[str] | None = None) -> None:
        self.adapters = tuple(adapters)
        modules = tuple(dict.fromkeys(name for adapter in self.adapters for name in adapter.modules))
        if guards is None:
            guards = [name for name in modules if "zamba" in name.rpartition(".")[2]]
        self.guards = frozenset(guards) or frozenset(modules)
        self._modules = tuple(dict.fromkeys((*modules, *sorted(self.guards))))
        self._applier = Applier(_by_library(self.adapters))
        self._watcher = ImportWatcher(self._modules, self._on_import)

    def arm(self) -> None:
        """Patch what is imported, and the rest when it is imported. Arming twice is as arming once.

        Raises:
            AdapterError: an adapter failed and a guard is imported already. Everything is taken back.
        """
        with self._applier.lock:
            generation = self._applier.begin()
            self._watcher.start()
        self._visit_loaded(generation, wait=True)
        try:
            self._raise_if_due(None)
        except AdapterError:
            # The failures stay, for `status()`.
            with self._applier.lock:
                covered = self._applier.end()
                self._watcher.stop()
            warn(covered)
            raise

    def disarm(self) -> tuple[str, ...]:
        """Put every attribute back as it was found; imports still to come stay unpatched.

        An attribute that other code has replaced since is left alone, with a RuntimeWarning.

        Returns:
            the targets left alone.
        """
        with self._applier.lock:
            covered = self._applier.end()
            self._applier.failures.clear()
            self._watcher.stop()
        warn(covered)
        return tuple(record.patch.target for record in covered)

    def status(self) -> list[AdapterStatus]:
        """What became of each adapter, in order. Imports nothing but standard modules and `packaging`."""
        return [self._status(adapter) for adapter in self.adapters]

    def _on_import(self, name: str, module: ModuleType) -> None:
        with self._applier.lock:
            if not self._applier.armed:
                return
            generation = self._applier.generation
        self._applier.visit(name, module, generation, executed=True)
        if name in self.guards:
            self._visit_loaded(generation, wait=False)
        self._raise_if_due(name)

    def _visit_loaded(self, generation: int, *, wait: bool) -> None:
        for name in self._modules:
            module = loaded(name, wait=wait)
            if module is not None and self._applier.seen.get(name) is not module:
                self._applier.visit(name, module, generation, executed=False)

    def _raise_if_due(self, name: str | None) -> None:
        with self._applier.lock:
            failure = next(iter(self._applier.failures.values()), None)
        if failure is None:
            return
        if name in self.guards or any(loaded(guard, wait=False) is not None for guard in self.guards):
            error = failure.error
            # A new one each time: an exception gathers the traceback of every place that raises it.
            raise AdapterError(error.what, where=error.where, remedy=error.remedy) from error.__cause__

    def _status(self, adapter: Adapter) -> AdapterStatus:
        state, reason = self._state(adapter)
        return AdapterStatus(
            name=adapter.name,
            library=adapter.library,
            requires=" and ".join(map(str, adapter.pins)),
            installed=installed_version(adapter.library),
            state=state,
            reason=reason,
            upstream=adapter.upstream,
            summary=adapter.summary,
            targets=adapter.targets,
        )

    def _state(self, adapter: Adapter) -> tuple[State, str]:
        verdict = place(adapter)
        with self._applier.lock:
            journal = self._applier.journal
            failure = self._applier.failures.get(adapter.library)
            covered = ", ".join(rec.patch.target for rec in journal.covered if rec.adapter is adapter)
            applied = any(record.adapter is adapter for record in journal.records)
            blocked = self._applier.reasons.get((self._applier.generation, adapter.name))
            waiting = ", ".join(name for name in adapter.modules if name not in self._applier.seen)
            armed = self._applier.armed
        if verdict.kind != "inside":
            return "not needed" if verdict.kind == "outside" else "unpinned", verdict.reason
        if failure is not None:
            if failure.adapter == adapter.name:
                return failure.state, failure.error.what
            return "refused", f"taken back with {failure.adapter}"
        if not armed:
            return "disarmed", f"still in place below what other code put there: {covered}" if covered else ""
        if blocked is not None:
            return "not needed", blocked
        if applied or waiting:
            return "applied" if applied else "armed", f"waits for the import of {waiting}" if waiting else ""
        return "not needed", "no target in this release"


def _by_library(adapters: Iterable[Adapter]) -> dict[str, list[Adapter]]:
    libraries: dict[str, list[Adapter]] = {}
    names: set[str] = set()
    owners: dict[str, Adapter] = {}
    for adapter in adapters:
        where = f"adapter {adapter.name}"
        if adapter.name in names:
            raise AdapterError("There are two of this name.", where=where, remedy="Rename one.")
        names.add(adapter.name)
        libraries.setdefault(adapter.library, []).append(adapter)
        for target in adapter.targets:
            other = owners.setdefault(target, adapter)
            if other.library != adapter.library:
                raise AdapterError(
                    f"{target} is patched for {other.library} too, by {other.name}.",
                    where=where,
                    remedy="Let the first requirement of both name the same library.",
                )
    return libraries
