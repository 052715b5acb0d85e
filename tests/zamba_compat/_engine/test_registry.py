"""When adapters are applied, to which releases, and what is told about them."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
import warnings
from collections.abc import Callable
from importlib import metadata
from importlib.machinery import SourceFileLoader
from typing import Any

import pytest

from support.fake_library import LEAF, SHARED, FakeLibrary, adapter, broken, load, refused, saying, state
from zamba_compat._engine.registry import Adapter, Patch, Registry


def test_arming_imports_nothing_and_patches_what_is_imported_later(make_registry: Any) -> None:
    registry = make_registry(adapter("forward", f"{LEAF}:Model.forward"))
    registry.arm()
    assert not any(name.startswith("zlib_fake") for name in sys.modules)
    assert state(registry) == {"forward": "armed"}
    assert load(LEAF).Model().forward(1) == ("forward", "stock forward 1")
    assert state(registry) == {"forward": "applied"}


def test_patches_what_is_imported_already_at_once(make_registry: Any) -> None:
    leaf = load(LEAF)
    registry = make_registry(adapter("forward", f"{LEAF}:Model.forward"))
    registry.arm()
    assert leaf.Model().forward(1) == ("forward", "stock forward 1")
    assert state(registry) == {"forward": "applied"}


def test_patches_modules_as_they_come(make_registry: Any) -> None:
    registry = make_registry(adapter("both", f"{LEAF}:scan", f"{SHARED}:PreTrained.save"))
    registry.arm()
    shared = load(SHARED)
    assert shared.PreTrained().save() == ("both", "stock save")
    [status] = registry.status()
    assert (status.state, status.reason) == ("applied", f"waits for the import of {LEAF}")
    assert load(LEAF).scan(1) == ("both", "stock scan")
    assert registry.status()[0].reason == ""


@pytest.mark.parametrize("first", [True, False])
def test_arming_twice_is_arming_once(first: bool, make_registry: Any) -> None:
    registry = make_registry(adapter("forward", f"{LEAF}:Model.forward"))
    if first:
        load(LEAF)
    registry.arm()
    registry.arm()
    model = load(LEAF).Model
    registry.arm()
    assert model().forward(1) == ("forward", "stock forward 1")
    registry.disarm()
    registry.disarm()
    assert model().forward(1) == "stock forward 1"


def test_the_module_keeps_its_own_loader(make_registry: Any) -> None:
    make_registry(adapter("forward", f"{LEAF}:Model.forward")).arm()
    leaf = load(LEAF)
    assert type(leaf.__loader__) is type(leaf.__spec__.loader) is SourceFileLoader
    assert "def forward" in inspect.getsource(leaf)


def test_a_reloaded_module_is_patched_again(make_registry: Any) -> None:
    registry = make_registry(adapter("both", f"{LEAF}:scan", f"{LEAF}:Model.forward"))
    registry.arm()
    old = load(LEAF).Model
    leaf = importlib.reload(sys.modules[LEAF])
    assert leaf.Model is not old
    assert leaf.scan(1) == ("both", "stock scan")
    assert leaf.Model().forward(1) == ("both", "stock forward 1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert registry.disarm() == ()
    assert (leaf.scan(1), leaf.Model().forward(1)) == ("stock scan", "stock forward 1")
    assert old().forward(1) == "stock forward 1"


def test_a_module_dropped_and_imported_again_is_patched_again(make_registry: Any) -> None:
    make_registry(adapter("scan", f"{LEAF}:scan")).arm()
    load(LEAF)
    del sys.modules[LEAF]
    assert load(LEAF).scan(1) == ("scan", "stock scan")


def test_a_module_that_came_in_unnoticed_is_patched_with_the_next_guard(make_registry: Any) -> None:
    registry = make_registry(adapter("both", f"{SHARED}:load", f"{LEAF}:scan"))
    registry.arm()
    finder = sys.meta_path.pop(0)
    shared = load(SHARED)
    sys.meta_path.insert(0, finder)
    assert shared.load("x") == "stock load"
    load(LEAF)
    assert shared.load("x") == ("both", "stock load")


@pytest.mark.parametrize("path", ["gone", "Gone.f", "Model.gone"])
def test_an_optional_target_may_be_absent(path: str, make_registry: Any) -> None:
    patches = (
        Patch(target=f"{LEAF}:{path}", replace=saying("x"), optional=True),
        Patch(target="zlib_fake.gone:f", replace=saying("x"), optional=True),
        Patch(target=f"{LEAF}:scan", replace=saying("mine")),
    )
    registry = make_registry(
        Adapter(name="some", library="zlib_fake", since="5.1", group="loading", upstream="-", patches=patches),
        adapter("none", f"{LEAF}:{path}", optional=True),
    )
    registry.arm()
    assert load(LEAF).scan(1) == ("mine", "stock scan")
    assert state(registry) == {"some": "applied", "none": "not needed"}
    assert registry.status()[1].reason == "no target in this release"


def test_an_optional_target_with_other_parameters_is_an_error(make_registry: Any) -> None:
    registry = make_registry(adapter("scan", f"{LEAF}:scan", optional=True, signature=("y",)))
    registry.arm()
    refused("has the parameters (x), expected (y)")


@pytest.mark.parametrize(
    ("version", "when", "reason"),
    [
        ("5.0.9", "not needed", "begins in 5.1"),
        ("5.1.0", "applied", ""),
        ("5.10.0.dev0+local", "applied", ""),
        ("5.16.99", "applied", ""),
        ("5.17.0rc1", "applied", ""),
        ("5.17.0", "not needed", "fixed in 5.17"),
        ("fork", "applied", ""),
    ],
)
def test_applies_inside_its_range_only(
    version: str, when: str, reason: str, library: FakeLibrary, make_registry: Any
) -> None:
    library.release(version)
    registry = make_registry(adapter("scan", f"{LEAF}:scan"))
    registry.arm()
    assert state(registry) == {"scan": "armed" if when == "applied" else when}
    assert load(LEAF).scan(1) == (("scan", "stock scan") if when == "applied" else "stock scan")
    [status] = registry.status()
    assert (status.state, status.reason, status.installed) == (when, reason, version)


def test_drift_outside_the_range_is_none_of_our_business(library: FakeLibrary, make_registry: Any) -> None:
    library.release("5.17.0")
    registry = make_registry(adapter("gone", f"{LEAF}:gone"), adapter("module", "zlib_fake.gone:f"))
    registry.arm()
    load(LEAF)
    assert set(state(registry).values()) == {"not needed"}


def test_the_imported_release_counts_more_than_the_metadata(library: FakeLibrary, make_registry: Any) -> None:
    library.distribute("5.17.0")
    registry = make_registry(adapter("scan", f"{LEAF}:scan"))
    registry.arm()
    assert registry.status()[0].installed == "5.17.0"
    assert load(LEAF).scan(1) == ("scan", "stock scan")
    assert registry.status()[0].installed == "5.3.0"


def test_says_what_is_not_installed(make_registry: Any) -> None:
    registry = make_registry(adapter("scan", "absent_fake.modeling_zamba2:f", library="absent-fake", since="1"))
    registry.arm()
    [status] = registry.status()
    assert (status.state, status.reason, status.installed) == (
        "not needed",
        "absent-fake is not installed",
        None,
    )


def test_a_release_that_cannot_be_told_is_taken_as_it_is_found(library: FakeLibrary, make_registry: Any) -> None:
    library.write("__init__", "")
    for file in library.root.glob("*.dist-info/METADATA"):
        file.unlink()
        file.parent.rmdir()
    registry = make_registry(adapter("scan", f"{LEAF}:scan"))
    registry.arm()
    assert load(LEAF).scan(1) == ("scan", "stock scan")
    [status] = registry.status()
    assert (status.state, status.installed) == ("applied", None)


def test_a_condition_is_asked_once_and_when_it_matters(make_registry: Any) -> None:
    asked: list[str] = []

    def kernels(reason: str | None = None) -> Callable[[], str | None]:
        def ask() -> str | None:
            asked.append(str(reason))
            return reason

        return ask

    registry = make_registry(
        adapter("plain", f"{SHARED}:load", f"{LEAF}:scan", condition=kernels()),
        adapter("slow", f"{LEAF}:scan", condition=kernels("fused kernels are used")),
        adapter("later", f"{LEAF}:scan", since="6", fixed="7", condition=kernels("never asked")),
    )
    registry.arm()
    assert asked == []
    assert load(LEAF).scan(1) == ("plain", "stock scan")
    registry.arm()
    assert asked == ["None", "fused kernels are used"]
    assert state(registry) == {"plain": "applied", "slow": "not needed", "later": "not needed"}
    assert registry.status()[1].reason == "fused kernels are used"
    registry.disarm()
    registry.arm()
    assert asked == ["None", "fused kernels are used"] * 2


def test_a_condition_that_fails_is_an_error(make_registry: Any) -> None:
    registry = make_registry(adapter("scan", f"{LEAF}:scan", condition=lambda: broken(None)))
    registry.arm()
    refused("ImportError: no torch here")


def test_status_is_plain_data(make_registry: Any) -> None:
    registry = make_registry(adapter("scan", f"{LEAF}:scan", f"{LEAF}:load"))
    assert json.loads(json.dumps([status.as_dict() for status in registry.status()])) == [
        {
            "name": "scan",
            "library": "zlib_fake",
            "group": "loading",
            "requires": "zlib_fake>=5.1,<5.17",
            "installed": "5.3.0",
            "verified": True,
            "state": "disarmed",
            "reason": "",
            "changed": [],
            "upstream": "zlib#1",
            "summary": "A library written to disk for one test, and adapters for it.",
            "targets": [f"{LEAF}:scan", f"{LEAF}:load"],
        }
    ]
    assert isinstance(registry.status()[0].as_dict()["targets"], list)
    assert not any(name.startswith("zlib_fake") for name in sys.modules)


def test_works_on_a_library_that_nobody_wrote_for_this_test() -> None:
    import iniconfig

    version = metadata.version("iniconfig")
    method = vars(iniconfig.IniConfig)["lineof"]
    registry = Registry(
        [
            adapter(
                "lineof",
                "iniconfig:IniConfig.lineof",
                library="iniconfig",
                since=version.partition(".dev")[0],
                fixed=None,
                signature=("self", "section", ...),
            )
        ]
    )
    registry.arm()
    try:
        text, line = iniconfig.IniConfig("x.ini", "[a]\nb=1").lineof("a")
        assert (text, line) == ("lineof", 1)
        assert state(registry) == {"lineof": "applied"}
    finally:
        registry.disarm()
    assert vars(iniconfig.IniConfig)["lineof"] is method
