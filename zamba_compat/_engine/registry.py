"""The adapter engine: apply adapters to the releases that have their defects, and take them back.

An adapter is declared with `Adapter`, or with several `Patch`es. A `Registry` arms them, in order:

- What is imported already is patched at once, the rest right after it is imported. Nothing is imported.
- In a verified release, one that the whole suite has passed, the adapters of a library stand or fall together. A
  target that is missing or has other parameters takes all of them back and is an `AdapterError`: the installation was
  modified.
- In any other release the adapters of a group do. A target that is not as in any verified release (a fingerprint of its
  code tells) refuses its group and those that need it, and nothing else; or, where what the group computes is checked
  afterwards (`judged`), is replaced all the same.
- An error is raised where a *guard* is imported: a module that only users of Zamba need, by default each
  target module with "zamba" in its own name. Other modules import undisturbed; an error found in one is kept
  for the next guard, or raised at once if a guard is loaded already. A guard is refused again at every
  attempt. There too a group that is off in a release that was not tested is reported, once, as a warning.
- Two adapters of a library may patch the same attribute: the later one gets the earlier one's replacement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

from zamba_compat.errors import AdapterError

from .applier import Applier, Failure, Group, warn
from .declare import GROUPS, GUARDING, Adapter, Patch, Role
from .imports import ImportWatcher, loaded
from .releases import installed_version
from .status import AdapterStatus, State, Verdict
from .verified import Verified

__all__ = ["CACHE", "GROUPS", "GUARDING", "Adapter", "AdapterStatus", "Patch", "Registry", "Role", "State", "Verdict"]

CACHE = Role("past_key_values", "cache_params", "cache", "past_key_value", positional=True)
"""The parameter that takes the cache, by the names that releases have given it."""


class Registry:
    """An ordered set of adapters that are armed and taken back together. Safe to use from several threads.

    Args:
        adapters: names unique; the same target only in adapters of one library.
        guards: the modules whose import a failure refuses. Without any, every target module is one.
        verified: the record of tested releases, a file or what it holds; None takes every release for tested.
        judged: by library and group, what is checked by what it computes.
        disabled: the names of adapters and groups to leave off; asked at each arming.
        quiet: whether not to warn of groups that are off in a release that was not tested; asked at each import.

    Raises:
        AdapterError: two adapters share a name, or a target across libraries.
    """

    def __init__(
        self,
        adapters: Sequence[Adapter],
        *,
        guards: Iterable[str] | None = None,
        verified: str | Mapping[str, Any] | None = None,
        judged: Iterable[Group] = (),
        disabled: Callable[[], frozenset[str]] = frozenset,
        quiet: Callable[[], bool] = bool,
    ) -> None:
        self.adapters = tuple(adapters)
        modules = tuple(dict.fromkeys(name for adapter in self.adapters for name in adapter.modules))
        if guards is None:
            guards = [name for name in modules if "zamba" in name.rpartition(".")[2]]
        self.guards = frozenset(guards) or frozenset(modules)
        self._modules = tuple(dict.fromkeys((*modules, *sorted(self.guards))))
        self._libraries = _by_library(self.adapters)
        self._applier = Applier(
            self._libraries, verified=Verified(verified), judged=frozenset(judged), disabled=disabled
        )
        self._quiet = quiet
        self._told: set[Group] = set()
        self._watcher = ImportWatcher(self._modules, self._on_import)

    @property
    def armed(self) -> bool:
        """Whether adapters are applied to what is imported."""
        return self._applier.armed

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
            self._told.clear()
            self._watcher.stop()
        warn(covered)
        return tuple(record.patch.target for record in covered)

    def status(self) -> list[AdapterStatus]:
        """What became of each adapter, in order. Imports nothing but standard modules and `packaging`."""
        return [self._status(adapter) for adapter in self.adapters]

    def verdicts(self) -> list[Verdict]:
        """What is known of the release of every library that is installed, in the order of the adapters."""
        found = [self.verdict(library) for library in self._libraries]
        return [verdict for verdict in found if verdict.installed is not None or verdict.active or verdict.off]

    def verdict(self, library: str) -> Verdict:
        """What is known of one library's release."""
        statuses = [status for status in self.status() if status.library == library]
        off: dict[str, str] = {}
        for status in statuses:
            if status.state in ("refused", "failed", "disabled") and status.group != "release":
                off.setdefault(status.group, status.reason or "switched off")
        tested = self._applier.verified.releases(library)
        return Verdict(
            library,
            installed_version(library),
            self._applier.verified.holds(library),
            tested[-1] if tested else None,
            sum(status.state in ("applied", "armed") for status in statuses),
            off,
            tuple(dict.fromkeys(target for status in statuses for target in status.changed)),
        )

    def is_verified(self, library: str) -> bool:
        """Whether the installed release of a library is one that the whole suite has passed."""
        return self._applier.verified.holds(library)

    def names(self) -> frozenset[str]:
        """Every adapter's name and every group's: what can be disabled."""
        return frozenset((*(adapter.name for adapter in self.adapters), *GROUPS))

    def refuse(self, library: str, group: str, why: str) -> None:
        """Take a group back, because what it computes is wrong in a release that was not tested."""
        for adapter in self._libraries[library]:
            if adapter.group == group and self._applier.place(adapter).kind != "outside":
                with self._applier.lock:
                    generation = self._applier.generation
                self._applier.fail(adapter, adapter.targets[0], Exception(why), generation)
                return

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
            failures = dict(self._applier.failures)
        if not failures:
            return
        if name not in self.guards and all(loaded(guard, wait=False) is None for guard in self.guards):
            return
        self._tell({group: failure for group, failure in failures.items() if not failure.verified})
        failure = next((failure for failure in failures.values() if failure.verified), None)
        if failure is not None:
            error = failure.error
            # A new one each time: an exception gathers the traceback of every place that raises it.
            raise AdapterError(error.what, where=error.where, remedy=error.remedy) from error.__cause__

    def _tell(self, failures: Mapping[Group, Failure]) -> None:
        """Warn of each group that is off in a release that was not tested, once; speed is no matter for a warning."""
        if self._quiet():
            return
        for (library, group), failure in failures.items():
            if (library, group) not in self._told and group not in ("speed", "release"):
                self._told.add((library, group))
                import logging

                logging.getLogger("zamba_compat").warning(
                    "%s %s was not tested, and group %s is off: %s. %s",
                    library,
                    installed_version(library),
                    group,
                    failure.reason,
                    failure.error.remedy,
                )

    def _status(self, adapter: Adapter) -> AdapterStatus:
        state, reason = self._state(adapter)
        verified = self._applier.verified
        tested = verified.holds(adapter.library)
        active = state in ("applied", "armed") and not tested and adapter.group != "release"
        return AdapterStatus(
            name=adapter.name,
            library=adapter.library,
            group=adapter.group,
            requires=adapter.requires,
            installed=installed_version(adapter.library),
            verified=tested,
            state=state,
            reason=reason,
            changed=verified.changed(adapter) if active else (),
            upstream=adapter.upstream,
            summary=adapter.summary,
            targets=adapter.targets,
        )

    def _state(self, adapter: Adapter) -> tuple[State, str]:
        place = self._applier.place(adapter)
        with self._applier.lock:
            journal = self._applier.journal
            failure = self._applier.failure(adapter)
            disabled = self._applier.is_disabled(adapter)
            covered = ", ".join(rec.patch.target for rec in journal.covered if rec.adapter is adapter)
            applied = any(record.adapter is adapter for record in journal.records)
            blocked = self._applier.reasons.get((self._applier.generation, adapter.name))
            waiting = ", ".join(name for name in adapter.modules if name not in self._applier.seen)
            armed = self._applier.armed
        if place.kind == "outside":
            return "not needed", place.reason
        if disabled:
            return "disabled", "switched off by ZAMBA_COMPAT_DISABLE or configure(disable=...)"
        if failure is not None:
            if failure.adapter == adapter.name:
                return failure.state, failure.reason
            return "refused", f"taken back with {failure.adapter}: {failure.reason}"
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
                    remedy="Let both belong to the same library.",
                )
    return libraries
