"""A library that is not what its pin says is refused, with nothing left half done."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from support.fake_library import (
    CONFIG,
    LEAF,
    SHARED,
    SOURCES,
    FakeLibrary,
    adapter,
    broken,
    load,
    refused,
    state,
)
from zamba_compat.errors import AdapterError


def test_a_target_that_is_gone_is_an_error(library: FakeLibrary, make_registry: Any) -> None:
    registry = make_registry(adapter("forward", f"{LEAF}:Model.forward"), adapter("scan", f"{LEAF}:scan"))
    library.change("models/modeling_zamba2", "def forward", "def forwards")
    registry.arm()
    refused(
        "adapter forward, zlib_fake 5.3.0: ",
        f"{LEAF}:Model.forward is missing, although zlib_fake 5.3.0 is one of the tested releases.",
        "Install an unmodified zlib_fake",
    )
    assert state(registry) == {"forward": "refused", "scan": "refused"}
    reasons = [status.reason for status in registry.status()]
    assert "is missing" in reasons[0]
    assert reasons[1].startswith("taken back with forward: ")


def test_a_class_that_is_gone_is_an_error(library: FakeLibrary, make_registry: Any) -> None:
    registry = make_registry(adapter("forward", f"{LEAF}:Model.forward"))
    library.change("models/modeling_zamba2", "class Model", "class Renamed")
    registry.arm()
    refused("Model.forward is missing: there is no Model")


@pytest.mark.parametrize("guard", [LEAF, CONFIG])
def test_a_module_that_is_gone_is_an_error(guard: str, make_registry: Any) -> None:
    gone = adapter("gone", f"{LEAF}:scan", "zlib_fake.integrations.bnb:f", f"{CONFIG}:load")
    registry = make_registry(gone)
    registry.arm()
    refused("zlib_fake.integrations.bnb:f is missing: there is no such module", name=guard)


def test_a_module_is_not_looked_for_elsewhere(make_registry: Any) -> None:
    # shared is no package, and a top-level module of the same last name exists
    registry = make_registry(adapter("gone", f"{SHARED}.json:loads"), adapter("scan", f"{LEAF}:scan"))
    registry.arm()
    refused("shared.json:loads is missing: there is no such module")


def test_other_parameters_are_an_error(library: FakeLibrary, make_registry: Any) -> None:
    registry = make_registry(adapter("forward", f"{LEAF}:Model.forward", signature=("self", "x", "cache")))
    library.change("models/modeling_zamba2", "x, cache=None", "x, caches=None")
    registry.arm()
    refused("Model.forward has the parameters (self, x, caches), expected (self, x, cache)")


@pytest.mark.parametrize(
    ("replace", "says"),
    [
        (broken, "scan could not be replaced: ImportError: no torch here."),
        (lambda original: None, "factory returned None"),
        (lambda original: original, "factory returned the original itself"),
        ("helper_fake_absent:make", "No module named 'helper_fake_absent'"),
    ],
)
def test_a_factory_that_fails_is_an_error(replace: Any, says: str, make_registry: Any) -> None:
    registry = make_registry(adapter("fails", f"{LEAF}:scan", replace=replace))
    registry.arm()
    error = refused("adapter fails, zlib_fake 5.3.0", says)
    assert isinstance(error.__cause__, Exception)
    assert state(registry) == {"fails": "failed"}


def test_a_failure_in_the_middle_takes_everything_back(library: FakeLibrary, make_registry: Any) -> None:
    shared = load(SHARED)
    before = dict(vars(shared)), dict(vars(shared.PreTrained))
    registry = make_registry(
        adapter("first", f"{SHARED}:load"),
        adapter("second", f"{SHARED}:PreTrained.save", f"{LEAF}:scan", f"{LEAF}:gone", f"{SHARED}:PreTrained.tied"),
        adapter("third", f"{SHARED}:PreTrained.build"),
    )
    registry.arm()
    assert shared.PreTrained().save() == ("second", "stock save")
    refused("adapter second", f"{LEAF}:gone is missing")
    for owner, attributes in zip((shared, shared.PreTrained), before, strict=True):
        assert [name for name in attributes if vars(owner)[name] is not attributes[name]] == []
        assert list(vars(owner)) == list(attributes)
    assert set(state(registry).values()) == {"refused"}


def test_a_shared_module_is_never_refused(library: FakeLibrary, make_registry: Any) -> None:
    registry = make_registry(adapter("gone", f"{SHARED}:gone"), adapter("scan", f"{LEAF}:scan"))
    registry.arm()
    assert load(SHARED).load("x") == "stock load"
    assert state(registry)["gone"] == "refused"
    refused(f"{SHARED}:gone is missing")
    assert load(SHARED).load("x") == "stock load"


def test_drift_in_a_shared_module_first_imported_by_a_guard(make_registry: Any) -> None:
    registry = make_registry(adapter("gone", f"{SHARED}:gone"), adapter("scan", f"{LEAF}:scan"))
    registry.arm()
    refused(f"{SHARED}:gone is missing")
    assert SHARED in sys.modules


def test_drift_in_a_shared_module_imported_after_a_guard_is_raised_there(
    library: FakeLibrary, make_registry: Any
) -> None:
    library.write("integrations", "def f(): pass")
    registry = make_registry(adapter("gone", "zlib_fake.integrations:gone"), adapter("scan", f"{LEAF}:scan"))
    registry.arm()
    leaf = load(LEAF)
    assert leaf.scan(1) == ("scan", "stock scan")
    refused("integrations:gone is missing", name="zlib_fake.integrations")
    assert leaf.scan(1) == "stock scan"


def test_arming_raises_when_a_guard_is_loaded_already(make_registry: Any) -> None:
    leaf = load(LEAF)
    registry = make_registry(adapter("scan", f"{LEAF}:scan"), adapter("gone", f"{LEAF}:gone"))
    for _ in range(2):
        with pytest.raises(AdapterError, match="gone is missing"):
            registry.arm()
        assert leaf.scan(1) == "stock scan"
        assert state(registry) == {"scan": "refused", "gone": "refused"}
    leaf.gone = leaf.scan
    registry.arm()
    assert leaf.scan(1) == ("scan", "stock scan")
    assert leaf.gone(1) == ("gone", "stock scan")


def test_arming_keeps_quiet_while_only_shared_modules_are_loaded(make_registry: Any) -> None:
    load(SHARED)
    registry = make_registry(adapter("gone", f"{SHARED}:gone"), adapter("scan", f"{LEAF}:scan"))
    registry.arm()
    refused("gone is missing")


def test_without_guards_every_module_is_one(make_registry: Any) -> None:
    registry = make_registry(adapter("gone", f"{SHARED}:gone"))
    registry.arm()
    refused("gone is missing", name=SHARED)


def test_a_guard_without_targets_is_refused_too(library: FakeLibrary, make_registry: Any) -> None:
    registry = make_registry(adapter("gone", f"{SHARED}:gone"), guards=[CONFIG])
    registry.arm()
    load(SHARED)
    refused("gone is missing", name=CONFIG)


def test_disarming_lifts_a_refusal(make_registry: Any) -> None:
    registry = make_registry(adapter("gone", f"{LEAF}:gone"))
    registry.arm()
    refused("gone")
    registry.disarm()
    assert load(LEAF).scan(1) == "stock scan"
    assert state(registry) == {"gone": "disarmed"}


def test_an_error_of_the_module_itself_is_left_alone(library: FakeLibrary, make_registry: Any) -> None:
    make_registry(adapter("scan", f"{LEAF}:scan")).arm()
    library.write("models/modeling_zamba2", "raise KeyError('its own')")
    with pytest.raises(KeyError, match="its own"):
        load(LEAF)
    library.write("models/modeling_zamba2", SOURCES["models/modeling_zamba2"])
    assert load(LEAF).scan(1) == ("scan", "stock scan")


@pytest.mark.parametrize("first", [True, False])
def test_libraries_fail_apart(first: bool, library: FakeLibrary, make_registry: Any) -> None:
    library.distribute("1.0", name="other_fake")
    gone = adapter("gone", f"{SHARED}:gone", library="other_fake", since="1")
    mine = adapter("load", f"{SHARED}:load")
    registry = make_registry(*((gone, mine) if first else (mine, gone)), guards=[LEAF])
    registry.arm()
    assert load(SHARED).load("x") == ("load", "stock load")
    assert state(registry) == {"gone": "refused", "load": "applied"}
    refused("adapter gone, other_fake 1.0")
