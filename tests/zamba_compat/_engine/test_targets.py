"""Slots, descriptors, signatures and the stamp on a replacement."""

from __future__ import annotations

import functools
import inspect
from types import ModuleType
from typing import Any

import pytest

from zamba_compat._engine.targets import MARK, MISSING, Drift, Slot, check, find, stamp, unwrap


def plain(self: Any, hidden_states: Any, mask: Any = None, *args: Any, flag: bool = False, **kwargs: Any) -> Any:
    """Docs of the original."""


@functools.wraps(plain)
def decorated(*args: Any, **kwargs: Any) -> Any:
    return plain(*args, **kwargs)


FULL = ("self", "hidden_states", "mask", "*args", "flag", "**kwargs")


@pytest.mark.parametrize(
    "signature",
    [FULL, ("self", ...), ("self", ..., "flag", ...), (...,), (..., "**kwargs"), (*FULL, ...), (..., *FULL)],
)
@pytest.mark.parametrize("original", [plain, decorated])
def test_accepts_the_parameters_it_expects(original: Any, signature: Any) -> None:
    check(original, signature)


@pytest.mark.parametrize(
    "signature",
    [
        (),
        FULL[:-1],
        FULL[1:],
        (*FULL, "more"),
        ("self", "mask", "hidden_states", ...),
        ("self", "hidden", ...),
        ("self", "hidden_states", "mask", "args", "flag", "kwargs"),
        ("self", ..., "hidden_states", "flag", ...),
        ("sel.", ...),
    ],
)
def test_refuses_other_parameters(signature: Any) -> None:
    with pytest.raises(Drift, match=r"has the parameters \(self, hidden_states, mask, \*args, flag, \*\*kwargs\)"):
        check(plain, signature)


def test_refuses_to_compare_what_has_no_signature() -> None:
    with pytest.raises(Drift, match="no signature"):
        check(3, ("self",))


def test_finds_owners_but_not_instances() -> None:
    module = ModuleType("mod")
    outer = type("Outer", (), {"Inner": type("Inner", (), {}), "instance": object()})
    vars(module)["Outer"] = outer
    assert find(module, "absent") == Slot(module, "absent")
    assert find(module, "Outer.Inner.x") == Slot(vars(outer)["Inner"], "x")
    with pytest.raises(Drift, match="there is no Other"):
        find(module, "Other.x")
    with pytest.raises(Drift, match="instance is neither"):
        find(module, "Outer.instance.x")


def test_a_slot_tells_its_own_from_what_it_inherits() -> None:
    parent = type("Parent", (), {"f": staticmethod(len), "g": 1})
    child = type("Child", (parent,), {"g": 2})
    assert Slot(child, "f").raw is MISSING
    assert Slot(child, "f").inherited is vars(parent)["f"]
    assert (Slot(child, "g").raw, Slot(child, "g").inherited) == (2, 1)
    assert Slot(child, "h").inherited is MISSING
    assert Slot(ModuleType("m"), "h").inherited is MISSING


def test_rewraps_in_the_same_kind() -> None:
    class Owner:
        @property
        def setting(self) -> int:
            """Kept."""
            return 1

        @setting.setter
        def setting(self, value: int) -> None:
            vars(self)["written"] = value

        @functools.cached_property
        def once(self) -> list[int]:
            return [1]

    slot = Slot(Owner, "setting")
    get, rewrap = unwrap(slot.raw, slot)
    assert get(None) == 1
    Slot(Owner, "setting").put(rewrap(lambda self: 2))
    owner = Owner()
    owner.setting = 5
    assert (owner.setting, vars(owner)["written"], Owner.setting.__doc__) == (2, 5, "Kept.")

    slot = Slot(Owner, "once")
    slot.put(unwrap(slot.raw, slot)[1](lambda self: [2]))
    assert owner.once == [2]
    assert owner.once is owner.once


def test_hands_a_special_descriptor_on_as_it_is() -> None:
    class lazy(property):
        pass

    raw = lazy(lambda self: 1)
    slot = Slot(type("Owner", (), {"x": raw}), "x")
    function, rewrap = unwrap(raw, slot)
    assert function is raw
    assert rewrap(7) == 7


def test_the_stamp_names_the_adapter_and_keeps_the_original_s_metadata() -> None:
    vars(plain)["flag_of_original"] = True

    def mine(self: Any, *args: Any, extra: int = 3, **kwargs: Any) -> Any:
        return extra

    stamped = stamp(mine, plain, "block-order")
    assert getattr(stamped, MARK) == "block-order"
    assert stamped.__doc__ == "Docs of the original."
    assert stamped.__qualname__ == "plain"
    assert stamped.__wrapped__ is plain
    assert inspect.signature(stamped) == inspect.signature(plain)
    assert stamped.flag_of_original
    assert stamped(None) == 3
    assert stamped.__code__ is mine.__code__  # tracebacks lead to the adapter's file
    assert vars(mine) == {} and mine.__doc__ is None


def test_the_stamp_leaves_a_signature_of_its_own() -> None:
    def mine(self: Any, hidden_states: Any, inputs_embeds: Any = None) -> Any: ...

    vars(mine)["__signature__"] = inspect.signature(mine)
    assert list(inspect.signature(stamp(mine, plain, "x")).parameters) == [
        "self",
        "hidden_states",
        "inputs_embeds",
    ]


def test_the_outer_stamp_counts() -> None:
    inner = stamp(lambda self: 1, plain, "inner")
    assert getattr(stamp(functools.wraps(inner)(lambda self: 2), inner, "outer"), MARK) == "outer"
    assert getattr(inner, MARK) == "inner"


def test_stamps_functions_only() -> None:
    data = ["a"]
    assert stamp(data, ["b"], "x") is data
    added = stamp(lambda: 1, None, "x")
    assert getattr(added, MARK) == "x"
    assert not hasattr(added, "__wrapped__")
    assert stamp(decorated, None, "x").__wrapped__ is plain
