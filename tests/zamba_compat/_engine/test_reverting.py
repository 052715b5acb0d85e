"""Every kind of attribute is replaced, stacked and put back exactly."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from support.fake_library import LEAF, SHARED, FakeLibrary, adapter, load, state
from zamba_compat.errors import AdapterError

KINDS: dict[str, tuple[str, Any]] = {
    "Model.forward": ("forward", lambda m: m.Model().forward(1)),
    "Model.save": ("inherited", lambda m: m.Model().save()),
    "Model.scan": ("static method", lambda m: m.Model.scan(1)),
    "Model.tied": ("inherited static method", lambda m: m.Model().tied("x")),
    "Model.layers": ("class method", lambda m: m.Model.layers()),
    "Model.build": ("inherited class method", lambda m: m.Model.build()),
    "Model.blocks": ("property", lambda m: m.Model().blocks),
    "Model.rotary": ("cached property", lambda m: m.Model().rotary),
    "Model.Inner.run": ("nested class", lambda m: m.Model.Inner().run()),
    "Model.Inner": ("class", lambda m: m.Model.Inner()),
    "scan": ("function", lambda m: m.scan(1)),
    "load": ("function imported by name", lambda m: m.load("x")),
}


@pytest.mark.parametrize("path", KINDS)
def test_replaces_and_takes_back_every_kind_of_attribute(path: str, make_registry: Any) -> None:
    leaf = load(LEAF)
    owners = [leaf, leaf.Model, leaf.Model.Inner, load(SHARED), load(SHARED).PreTrained]
    before = [dict(vars(owner)) for owner in owners]
    call = KINDS[path][1]
    registry = make_registry(adapter("mine", f"{LEAF}:{path}"))
    for _ in range(2):
        registry.arm()
        text, original = call(leaf)
        assert text == "mine"
        if path != "Model.Inner":
            assert "stock" in (original if isinstance(original, str) else original[0])
        if "class method" in KINDS[path][0]:
            assert original[1] is leaf.Model
        assert load(SHARED).PreTrained().save() == "stock save"
        registry.disarm()
        for owner, attributes in zip(owners, before, strict=True):
            after = dict(vars(owner))
            assert list(after) == list(attributes)
            assert [name for name in after if after[name] is not attributes[name]] == []


def test_replaces_data(make_registry: Any) -> None:
    model = load(LEAF).Model
    keys = model.keys
    registry = make_registry(adapter("keys", f"{LEAF}:Model.keys", replace=lambda original: [*original, "mine"]))
    registry.arm()
    assert model.keys == ["stock", "mine"]
    registry.disarm()
    assert model.keys is keys


def test_adds_an_attribute_and_deletes_it(make_registry: Any) -> None:
    model = load(LEAF).Model
    before = dict(vars(model))
    originals: list[Any] = []

    def factory(original: Any) -> Any:
        originals.append(original)
        return classmethod(lambda cls: cls)

    registry = make_registry(adapter("added", f"{LEAF}:Model.added", replace=factory, add=True))
    registry.arm()
    assert model.added() is model
    assert originals == [None]
    registry.disarm()
    assert dict(vars(model)) == before


def test_a_descriptor_that_a_factory_makes_is_used_as_it_is(make_registry: Any) -> None:
    model = load(LEAF).Model
    mine = property(lambda self: "mine", lambda self, value: None)
    make_registry(adapter("blocks", f"{LEAF}:Model.blocks", replace=lambda original: mine)).arm()
    assert vars(model)["blocks"] is mine


def test_refuses_to_add_what_exists(make_registry: Any) -> None:
    registry = make_registry(adapter("added", f"{LEAF}:scan", add=True))
    registry.arm()
    with pytest.raises(AdapterError, match="modeling_zamba2:scan exists already"):
        load(LEAF)


def test_a_replacement_tells_whose_it_is(make_registry: Any) -> None:
    make_registry(adapter("forward", f"{LEAF}:Model.forward")).arm()
    forward = load(LEAF).Model.forward
    assert forward.__zamba_compat__ == "forward"
    assert forward.__qualname__ == "Model.forward"
    assert list(inspect.signature(forward).parameters) == ["self", "x", "cache"]


def test_a_factory_given_by_name_is_imported_when_applied(library: FakeLibrary, make_registry: Any) -> None:
    (library.root / "helper_fake.py").write_text("class make:\n    def scan(original): return lambda x: 'helped'")
    importlib.invalidate_caches()
    make_registry(adapter("scan", f"{LEAF}:scan", replace="helper_fake:make.scan")).arm()
    load(SHARED)
    assert "helper_fake" not in sys.modules
    assert load(LEAF).scan(1) == "helped"


def test_the_later_adapter_wraps_the_earlier_one(make_registry: Any) -> None:
    registry = make_registry(
        adapter("inner", f"{LEAF}:scan", signature=("x",)), adapter("outer", f"{LEAF}:scan", signature=("x",))
    )
    registry.arm()
    leaf = load(LEAF)
    assert leaf.scan(1) == ("outer", ("inner", "stock scan"))
    registry.disarm()
    assert leaf.scan(1) == "stock scan"


def test_an_attribute_reached_under_two_names_is_patched_once(make_registry: Any) -> None:
    registry = make_registry(adapter("save", f"{SHARED}:PreTrained.save", f"{LEAF}:PreTrained.save"))
    registry.arm()
    model = load(LEAF).Model
    assert model().save() == ("save", "stock save")
    registry.disarm()
    assert model().save() == "stock save"


@pytest.mark.parametrize("order", [(SHARED, LEAF), (LEAF, SHARED)])
@pytest.mark.parametrize("when", ["before", "between", "after"])
def test_a_function_imported_by_name_is_patched_once_in_each_module(
    order: tuple[str, str], when: str, make_registry: Any
) -> None:
    registry = make_registry(
        adapter("both", f"{order[0]}:load", f"{order[1]}:load"), adapter("shared-only", f"{SHARED}:load")
    )
    for moment, name in (("before", SHARED), ("between", LEAF), ("after", LEAF)):
        if moment == when:
            registry.arm()
        load(name)
    shared, leaf = load(SHARED), load(LEAF)
    assert shared.load("x") == ("shared-only", ("both", "stock load"))
    assert leaf.load("x") == ("both", "stock load")
    registry.disarm()
    assert shared.load("x") == "stock load"
    assert leaf.load is shared.load


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def foreign(*args: Any) -> Any:
        return "foreign", function(*args)

    return foreign


def test_what_other_code_put_in_our_place_is_left_alone(make_registry: Any) -> None:
    registry = make_registry(adapter("inner", f"{LEAF}:scan"), adapter("outer", f"{LEAF}:scan", f"{LEAF}:load"))
    registry.arm()
    leaf = load(LEAF)
    ours, leaf.scan = leaf.scan, wrapped(leaf.scan)
    foreign = leaf.scan
    with pytest.warns(RuntimeWarning, match=f"replaced them meanwhile: {LEAF}:scan, {LEAF}:scan$"):
        assert registry.disarm() == (f"{LEAF}:scan",) * 2
    assert leaf.scan is foreign
    assert leaf.load("x") == "stock load"
    assert [status.reason for status in registry.status()] == [
        f"still in place below what other code put there: {LEAF}:scan"
    ] * 2

    registry.arm()  # ours is still called by theirs, so there is nothing to do
    assert leaf.scan is foreign
    assert leaf.scan(1) == ("foreign", ("outer", ("inner", "stock scan")))
    assert state(registry) == {"inner": "applied", "outer": "applied"}

    leaf.scan = ours  # they leave: now it can be undone
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert registry.disarm() == ()
    assert leaf.scan(1) == "stock scan"


def test_a_foreign_class_method_over_ours_is_recognised(make_registry: Any) -> None:
    registry = make_registry(adapter("layers", f"{LEAF}:Model.layers"))
    registry.arm()
    model = load(LEAF).Model
    model.layers = classmethod(wrapped(vars(model)["layers"].__func__))
    with pytest.warns(RuntimeWarning):
        registry.disarm()
    registry.arm()
    assert model.layers() == ("foreign", ("layers", ("stock layers", model)))


def test_what_other_code_dropped_is_applied_anew(make_registry: Any) -> None:
    registry = make_registry(adapter("scan", f"{LEAF}:scan"))
    registry.arm()
    leaf = load(LEAF)
    leaf.scan = lambda x: "foreign"
    with pytest.warns(RuntimeWarning):
        registry.disarm()
    registry.arm()
    assert leaf.scan(1) == ("scan", "foreign")
    with pytest.warns(RuntimeWarning):  # the first replacement is still not to be seen
        registry.disarm()
    assert leaf.scan(1) == "foreign"


def test_a_rollback_leaves_foreign_code_alone_too(make_registry: Any) -> None:
    registry = make_registry(adapter("load", f"{SHARED}:load"), adapter("gone", f"{LEAF}:gone"))
    registry.arm()
    shared = load(SHARED)
    shared.load = wrapped(shared.load)
    with pytest.warns(RuntimeWarning, match=f"meanwhile: {SHARED}:load"), pytest.raises(AdapterError):
        load(LEAF)
    assert shared.load("x") == ("foreign", ("load", "stock load"))
