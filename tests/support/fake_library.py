"""A library written to disk for one test, and adapters for it.

The fixtures `library` and `make_registry` are for a conftest.py to import.
"""

from __future__ import annotations

import importlib
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from zamba_compat._engine.registry import Adapter, Patch, Registry
from zamba_compat.errors import AdapterError

SHARED = "zlib_fake.shared"
LEAF = "zlib_fake.models.modeling_zamba2"
CONFIG = "zlib_fake.models.configuration_zamba2"

SOURCES = {
    "__init__": "__version__ = '5.3.0'",
    "shared": """
class PreTrained:
    def save(self): return "stock save"
    @staticmethod
    def tied(name): return "stock tied"
    @classmethod
    def build(cls, config=None): return ("stock build", cls)
def load(path): return "stock load"
""",
    "models/__init__": "",
    "models/configuration_zamba2": "from zlib_fake.shared import load\nclass Config: pass",
    "models/modeling_zamba2": """
from functools import cached_property
from zlib_fake.shared import PreTrained, load
class Model(PreTrained):
    keys = ["stock"]
    def forward(self, x, cache=None): return f"stock forward {x}"
    @staticmethod
    def scan(x): return "stock scan"
    @classmethod
    def layers(cls): return ("stock layers", cls)
    @property
    def blocks(self): return "stock blocks"
    @cached_property
    def rotary(self): return "stock rotary"
    class Inner:
        def run(self): return "stock run"
def scan(x): return "stock scan"
""",
}


class FakeLibrary:
    """The package `zlib_fake` in a directory of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name, source in SOURCES.items():
            self.write(name, source)
        self.distribute("5.3.0")

    def write(self, name: str, source: str) -> None:
        path = self.root / "zlib_fake" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        importlib.invalidate_caches()

    def change(self, name: str, old: str, new: str) -> None:
        path = self.root / "zlib_fake" / f"{name}.py"
        assert old in path.read_text()
        self.write(name, path.read_text().replace(old, new))

    def distribute(self, version: str, name: str = "zlib_fake") -> None:
        for old in self.root.glob(f"{name}-*.dist-info"):
            (old / "METADATA").unlink()
            old.rmdir()
        info = self.root / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    def release(self, version: str) -> None:
        self.distribute(version)
        self.write("__init__", f"__version__ = {version!r}")


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLibrary]:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    finders = list(sys.meta_path)
    yield FakeLibrary(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("zlib_fake", "helper_fake")]:
        del sys.modules[name]
    assert sys.meta_path == finders, "an import watcher was left behind"


@pytest.fixture
def make_registry(library: FakeLibrary) -> Iterator[Callable[..., Registry]]:
    made: list[Registry] = []

    def make(*adapters: Adapter, **settings: Any) -> Registry:
        made.append(Registry(adapters, **settings))
        return made[-1]

    yield make
    for registry in made:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            registry.disarm()


def saying(text: str) -> Callable[[Any], Any]:
    """A factory of replacements that return `text` and, after it, what the original returns."""

    def factory(original: Any) -> Any:
        def replacement(*args: Any, **kwargs: Any) -> Any:
            return text, original(*args, **kwargs)

        return replacement

    return factory


def adapter(name: str, *targets: str, **fields: Any) -> Adapter:
    settings: dict[str, Any] = {
        "library": "zlib_fake",
        "since": "5.1",
        "fixed": "5.17",
        "group": "loading",
        "upstream": "zlib#1",
        "replace": saying(name),
    }
    settings.update(fields)
    if len(targets) == 1:
        return Adapter(name=name, target=targets[0], **settings)
    replace = settings.pop("replace")
    return Adapter(name=name, patches=tuple(Patch(target=t, replace=replace) for t in targets), **settings)


def load(name: str) -> Any:
    return importlib.import_module(name)


def state(registry: Registry) -> dict[str, str]:
    return {status.name: status.state for status in registry.status()}


def refused(*parts: str, name: str = LEAF) -> AdapterError:
    """The error of an import that is refused."""
    errors: list[AdapterError] = []
    for _ in range(2):  # the second attempt must not slip through
        with pytest.raises(AdapterError) as caught:
            load(name)
        errors.append(caught.value)
        for part in parts:
            assert part in str(caught.value)
        assert name not in sys.modules
    assert errors[0] is not errors[1]
    return errors[1]


def broken(original: Any) -> Any:
    raise ImportError("no torch here")


def run_inside(library: FakeLibrary, name: str, action: Callable[[], None]) -> None:
    """Have a module of the library run `action` at the end of its execution."""
    vars(load("zlib_fake"))["action"] = action
    path = library.root / "zlib_fake" / f"{name}.py"
    library.write(name, path.read_text() + "\nimport zlib_fake; zlib_fake.action()")


class Background(threading.Thread):
    """A thread whose exception fails the test that joins it."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self.work = work
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.work()
        except BaseException as error:
            self.error = error

    def done(self) -> None:
        self.join(20)
        assert not self.is_alive(), "the thread hangs"
        if self.error is not None:
            raise self.error
