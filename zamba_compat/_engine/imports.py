"""Tell when a module has been executed, whichever way its import was asked for.

`wrapt.register_post_import_hook` forgets its hook once it has run. A module whose import an adapter refused
would be imported unpatched at the next attempt, without a word, and so would one that is reloaded or imported
again after it was dropped from `sys.modules` (transformers has a function that does so). This finder stays
until it is stopped.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class ImportWatcher:
    """Calls `notify(name, module)` after every execution of a watched module, in the importing thread.

    The module's import lock is held meanwhile; an exception makes the import fail with it.
    """

    def __init__(self, names: Iterable[str], notify: Callable[[str, ModuleType], None]) -> None:
        self.names = frozenset(names)
        self.notify = notify

    def start(self) -> None:
        """Watch from now on; modules that are imported already are not reported."""
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def stop(self) -> None:
        """Watch no more. An import that is under way may still be reported."""
        with suppress(ValueError):
            sys.meta_path.remove(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """What the other finders find, with a loader that notifies; None for modules not watched."""
        if fullname not in self.names:
            return None
        spec = _found_by_others(self, fullname, path, target)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec.loader, self.notify)  # type: ignore[assignment]
        return spec


class _Loader:
    """Stands in for a module's loader until the module is executed; its loader is then its own again."""

    def __init__(self, loader: Any, notify: Callable[[str, ModuleType], None]) -> None:
        self._loader = loader
        self._notify = notify

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        name = module.__name__ if spec is None else spec.name
        if spec is not None:
            spec.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        # A module may put another object in its own place while it runs; that is what its importers get.
        self._notify(name, sys.modules.get(name, module))


def loaded(name: str, *, wait: bool) -> ModuleType | None:
    """A module that is imported and complete, else None.

    Args: wait: let another thread finish importing it. A module that this very thread is importing stays
        incomplete.
    """
    if name in sys.modules and _incomplete(name) and wait:
        with suppress(Exception):  # an import that fails tells so where it was asked for
            importlib.import_module(name)
    return None if _incomplete(name) else sys.modules.get(name)


def exists(name: str) -> bool:
    """Whether a module can be found, its packages not imported for it."""
    path: Sequence[str] | None = None
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        prefix = ".".join(parts[:depth])
        module = sys.modules.get(prefix)
        if module is None:
            spec = _found_by_others(None, prefix, path)
            if spec is None:
                return False
            locations = spec.submodule_search_locations
            path = None if locations is None else list(locations)
        else:
            path = getattr(module, "__path__", None)
        if path is None and depth < len(parts):
            return False
    return True


def _incomplete(name: str) -> bool:
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return bool(getattr(spec, "_initializing", False))


def _found_by_others(
    watcher: ImportWatcher | None, name: str, path: Sequence[str] | None, target: ModuleType | None = None
) -> ModuleSpec | None:
    finders = list(sys.meta_path)
    if watcher in finders:  # only those behind it: another watcher asks this one in its turn
        finders = finders[finders.index(watcher) + 1 :]
    for finder in finders:
        if hasattr(finder, "find_spec"):
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                return spec
    return None
