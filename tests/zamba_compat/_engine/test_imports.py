"""Imports under way: disarmed in the middle, in several threads, one inside another."""

from __future__ import annotations

import importlib
import sys
import threading
from typing import Any

import pytest

from support.fake_library import CONFIG, LEAF, Background, FakeLibrary, adapter, load, run_inside, state
from zamba_compat._engine.registry import Registry


def test_disarming_reaches_imports_still_to_come(make_registry: Any) -> None:
    registry = make_registry(adapter("scan", f"{LEAF}:scan"))
    registry.arm()
    registry.disarm()
    assert state(registry) == {"scan": "disarmed"}
    assert load(LEAF).scan(1) == "stock scan"


def test_disarming_during_the_import_makes_the_hook_inert(library: FakeLibrary, make_registry: Any) -> None:
    registry = make_registry(adapter("scan", f"{LEAF}:scan"))
    registry.arm()
    run_inside(library, "models/modeling_zamba2", registry.disarm)
    leaf = load(LEAF)
    assert leaf.scan(1) == "stock scan"
    registry.arm()
    assert leaf.scan(1) == ("scan", "stock scan")


def test_disarming_while_a_replacement_is_made_drops_it(make_registry: Any) -> None:
    registry: Registry

    def factory(original: Any) -> Any:
        registry.disarm()
        return lambda x: "too late"

    registry = make_registry(adapter("scan", f"{LEAF}:scan", replace=factory), adapter("load", f"{LEAF}:load"))
    registry.arm()
    leaf = load(LEAF)
    assert (leaf.scan(1), leaf.load("x")) == ("stock scan", "stock load")


def test_what_was_dropped_is_applied_at_the_next_arming(make_registry: Any) -> None:
    registry: Registry
    calls: list[Any] = []

    def factory(original: Any) -> Any:
        calls.append(original)
        if len(calls) == 1:
            registry.disarm()
        return lambda x: "mine"

    registry = make_registry(adapter("scan", f"{LEAF}:scan", replace=factory))
    registry.arm()
    leaf = load(LEAF)
    assert leaf.scan(1) == "stock scan"
    registry.arm()
    assert leaf.scan(1) == "mine"


def test_a_visit_of_an_earlier_arming_changes_nothing(make_registry: Any) -> None:
    leaf = load(LEAF)
    registry = make_registry(adapter("scan", f"{LEAF}:scan"))
    registry.arm()
    registry._applier.visit(LEAF, leaf, 0, executed=True)
    assert leaf.scan(1) == ("scan", "stock scan")
    assert state(registry) == {"scan": "applied"}


def test_what_changes_while_a_replacement_is_made_is_not_lost(make_registry: Any) -> None:
    leaf = load(LEAF)
    stock = leaf.scan

    def factory(original: Any) -> Any:
        if original is stock:
            leaf.scan = lambda x: ("foreign", stock(x))
        return lambda x: ("mine", original(x))

    registry = make_registry(adapter("scan", f"{LEAF}:scan", replace=factory))
    registry.arm()
    assert leaf.scan(1) == ("mine", ("foreign", "stock scan"))
    registry.disarm()
    assert leaf.scan(1) == ("foreign", "stock scan")


def test_a_module_is_not_done_while_it_is_reloaded(make_registry: Any) -> None:
    registry: Registry
    reasons: list[str] = []

    def factory(original: Any) -> Any:
        reasons.append(registry.status()[0].reason)
        return lambda x: "mine"

    registry = make_registry(adapter("scan", f"{LEAF}:scan", replace=factory))
    registry.arm()
    importlib.reload(load(LEAF))
    assert reasons == [f"waits for the import of {LEAF}"] * 2


def test_a_module_that_puts_another_in_its_place_is_patched_there(library: FakeLibrary, make_registry: Any) -> None:
    library.write(
        "models/modeling_zamba2",
        "import sys, types\nother = types.ModuleType(__name__)\nother.scan = lambda x: 'stock scan'\n"
        "other.__spec__ = __spec__\nsys.modules[__name__] = other",
    )
    make_registry(adapter("scan", f"{LEAF}:scan")).arm()
    assert load(LEAF).scan(1) == ("scan", "stock scan")


def test_arming_inside_the_import_of_a_target_waits_for_the_next_chance(
    library: FakeLibrary, make_registry: Any
) -> None:
    registry = make_registry(adapter("scan", f"{LEAF}:Model.scan"), adapter("config", f"{CONFIG}:load"))
    run_inside(library, "models/modeling_zamba2", registry.arm)
    leaf = load(LEAF)
    assert state(registry)["scan"] == "armed"
    load(CONFIG)
    assert leaf.Model.scan(1) == ("scan", "stock scan")


def test_arming_waits_for_an_import_under_way_in_another_thread(library: FakeLibrary, make_registry: Any) -> None:
    registry = make_registry(adapter("scan", f"{LEAF}:scan"))
    inside, proceed = threading.Event(), threading.Event()

    def action() -> None:
        inside.set()
        assert proceed.wait(20)

    run_inside(library, "models/modeling_zamba2", action)
    importing = Background(lambda: load(LEAF))
    assert inside.wait(20)
    arming = Background(registry.arm)
    arming.join(0.1)
    assert arming.is_alive()
    proceed.set()
    importing.done()
    arming.done()
    assert load(LEAF).scan(1) == ("scan", "stock scan")


def test_an_import_inside_a_factory_does_not_deadlock(library: FakeLibrary, make_registry: Any) -> None:
    in_factory, in_config = threading.Event(), threading.Event()

    def factory(original: Any) -> Any:
        in_factory.set()
        assert in_config.wait(20)
        load(CONFIG)
        return lambda x: "mine"

    def action() -> None:
        in_config.set()
        assert in_factory.wait(20)

    registry = make_registry(adapter("scan", f"{LEAF}:scan", replace=factory), adapter("load", f"{CONFIG}:load"))
    run_inside(library, "models/configuration_zamba2", action)
    registry.arm()
    first, second = Background(lambda: load(LEAF)), Background(lambda: load(CONFIG))
    first.done()
    second.done()
    assert load(LEAF).scan(1) == "mine"
    assert load(CONFIG).load("x") == ("load", "stock load")


@pytest.mark.parametrize("loaded", [True, False])
def test_many_threads_patch_once(loaded: bool, make_registry: Any) -> None:
    barrier = threading.Barrier(8)
    names = [f"a{index}" for index in range(20)]
    registry = make_registry(*(adapter(name, f"{LEAF}:scan") for name in names))
    if loaded:
        load(LEAF)

    def work() -> None:
        barrier.wait(20)
        registry.arm()
        text, result = load(LEAF).scan(1)
        for name in reversed(names):
            assert text == name
            text, result = result if isinstance(result, tuple) else (None, result)
        assert result == "stock scan"

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in [Background(work) for _ in range(8)]:
            thread.done()
    finally:
        sys.setswitchinterval(switch)
    registry.disarm()
    assert load(LEAF).scan(1) == "stock scan"


def test_two_registries_keep_apart(make_registry: Any) -> None:
    one, two = make_registry(adapter("one", f"{LEAF}:scan")), make_registry(adapter("two", f"{LEAF}:load"))
    one.arm()
    two.arm()
    leaf = load(LEAF)
    one.disarm()
    assert (leaf.scan(1), leaf.load("x")) == ("stock scan", ("two", "stock load"))
