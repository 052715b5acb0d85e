"""An adapter that is declared wrongly is refused where it is declared."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from zamba_compat._engine.registry import Adapter, Patch, Registry
from zamba_compat.errors import AdapterError


def same(original: Any) -> Any:
    return original


def adapter(**overrides: Any) -> Adapter:
    fields: dict[str, Any] = {
        "name": "block-order",
        "library": "lib",
        "since": "5.1",
        "fixed": "5.17",
        "group": "tying",
        "upstream": "lib#1",
        "target": "lib.mod:Class.method",
        "replace": same,
    }
    return Adapter(**{**fields, **overrides})


def test_the_short_form_is_one_patch() -> None:
    short = adapter(signature=("self", ...))
    (patch,) = short.patches
    assert (patch.target, patch.replace, patch.signature) == ("lib.mod:Class.method", same, ("self", ...))
    assert (patch.optional, patch.add) == (False, False)
    assert (patch.module, patch.path) == ("lib.mod", "Class.method")
    assert short.library == "lib"
    assert short.targets == ("lib.mod:Class.method",)
    assert (repr(short), repr(patch)) == ("Adapter('block-order')", "Patch('lib.mod:Class.method')")


def test_the_summary_is_the_first_line_of_the_declaring_module() -> None:
    assert adapter().summary == "An adapter that is declared wrongly is refused where it is declared."
    assert adapter(summary="Mine.").summary == "Mine."


def test_names_the_modules_and_targets_in_order() -> None:
    targets = ("lib.b:f", "lib.a:f", "lib.b:g")
    several = adapter(target=None, replace=None, patches=tuple(Patch(target=t, replace=same) for t in targets))
    assert several.targets == targets
    assert several.modules == ("lib.b", "lib.a")


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        ({"name": "Block Order"}, "malformed name"),
        ({"name": ""}, "malformed name"),
        ({"name": "block--order"}, "malformed name"),
        ({"name": "block-\N{SUPERSCRIPT TWO}"}, "malformed name"),
        ({"library": "lib>=5.1"}, "no name of a library"),
        ({"since": "5.x"}, "no final release"),
        ({"fixed": "5.17rc1"}, "no final release"),
        ({"since": "5.17"}, "No release from 5.17 to below 5.17"),
        ({"since": "5.17.0", "fixed": "5.17"}, "No release"),
        ({"group": "tie"}, "no group 'tie'"),
        ({"needs": ("loads",)}, "no group 'loads'"),
        ({"relies": ("lib.mod.f",)}, "malformed target"),
        ({"target": None}, "Neither"),
        ({"replace": None}, "Neither"),
        ({"target": None, "replace": None}, "Neither"),
        ({"patches": (Patch(target="lib.mod:f", replace=same),)}, "Neither"),
        ({"target": None, "replace": None, "patches": (Patch(target="l:f", replace=same),) * 2}, "twice"),
        (
            {"target": None, "replace": None, "patches": (Patch(target="l:f", replace=same),), "add": True},
            "without a target",
        ),
        ({"target": "lib.mod.Class.method"}, "malformed target"),
        ({"target": "lib.mod:"}, "malformed target"),
        ({"target": "lib..mod:f"}, "malformed target"),
        ({"target": "lib.mod:f:g"}, "malformed target"),
        ({"target": "lib.mod:f()"}, "malformed target"),
        ({"target": "lib.5:f"}, "malformed target"),
        ({"replace": "zamba_compat.patches.scan"}, "malformed replacement"),
        ({"upstream": ""}, "no upstream"),
        ({"add": True, "optional": True}, "no original"),
        ({"add": True, "signature": ("self",)}, "no original"),
    ],
)
def test_refuses_a_malformed_adapter(overrides: dict[str, Any], what: str) -> None:
    with pytest.raises(AdapterError, match=what):
        adapter(**overrides)


def test_refuses_a_module_without_a_docstring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "__doc__", None)
    with pytest.raises(AdapterError, match="No summary"):
        adapter()


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: [adapter(), adapter(target="lib.mod:f")], "two of this name"),
        (lambda: [adapter(), adapter(library="b", since="1", target="b:f")], "two of this name"),
        (
            lambda: [adapter(), adapter(name="other", library="b", since="1")],
            "patched for lib too, by block-order",
        ),
    ],
)
def test_refuses_a_registry_that_contradicts_itself(make: Callable[[], list[Adapter]], what: str) -> None:
    with pytest.raises(AdapterError, match=what):
        Registry(make())


def test_guards_are_the_modules_named_for_zamba() -> None:
    zamba = adapter(target="lib.models.zamba2.modeling_zamba2:f")
    shared = adapter(name="shared", target="lib.models.zamba2.utils:f")
    assert Registry([zamba, shared]).guards == {"lib.models.zamba2.modeling_zamba2"}
    assert Registry([shared]).guards == {"lib.models.zamba2.utils"}
    assert Registry([zamba, shared], guards=["lib.x"]).guards == {"lib.x"}


def test_declaring_imports_nothing_heavy() -> None:
    code = (
        "import sys; from zamba_compat._engine.registry import Adapter, Registry;"
        "a = Adapter(name='a', library='t', since='1', group='tying', upstream='-', summary='s',"
        "target='t.m:f', replace=id);"
        "Registry([a]).arm();"
        "print(sorted({'torch', 'transformers', 'numpy', 'packaging'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
