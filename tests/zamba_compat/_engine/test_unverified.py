"""In a release that was not tested, what has changed is off by itself, and the rest applies."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from support.fake_library import LEAF, SHARED, FakeLibrary, adapter, load, refused, saying, state
from zamba_compat._engine.fingerprints import fingerprint, forget
from zamba_compat._engine.registry import Adapter, Registry, Role

FORWARD, SCAN, SAVE, LOAD = f"{LEAF}:Model.forward", f"{LEAF}:scan", f"{LEAF}:Model.save", f"{SHARED}:load"


def recorded(*adapters: Adapter) -> dict[str, Any]:
    """The record of the library as it lies there, under the release it says."""
    forget()
    targets = {target for a in adapters for target in (*a.targets, *a.relies)}
    marks = {target: {"5.3.0": fingerprint(target)} for target in targets}
    forget()
    return {"zlib_fake": {"releases": ["5.3.0"], "fingerprints": marks}}


class Lab:
    """Adapters, the record of release 5.3.0, and a release after it to be changed."""

    def __init__(self, library: FakeLibrary, make_registry: Any) -> None:
        self.library, self.make_registry = library, make_registry

    def arm(self, *adapters: Adapter, change: Any = None, version: str = "5.4.0", **settings: Any) -> Registry:
        record = recorded(*adapters)
        self.library.release(version)
        if change is not None:
            change(self.library)
        registry: Registry = self.make_registry(*adapters, verified=record, **settings)
        registry.arm()
        return registry


@pytest.fixture
def lab(library: FakeLibrary, make_registry: Any) -> Lab:
    return Lab(library, make_registry)


def rewritten(name: str, old: str, new: str) -> Any:
    return lambda library: library.change(name, old, new)


IN_LEAF = "models/modeling_zamba2"
SOURCE = 'def scan(x): return "stock scan"'


@pytest.mark.parametrize("version", ["5.4.0", "5.4.0.dev0", "5.3.1", "5.3.0+fork", "99.0"])
def test_what_did_not_change_applies(version: str, lab: Lab) -> None:
    registry = lab.arm(adapter("scan", SCAN, fixed=None), version=version)
    assert load(LEAF).scan(1) == ("scan", "stock scan")
    [status] = registry.status()
    assert (status.state, status.verified, status.changed) == ("applied", False, ())
    assert registry.verdict("zlib_fake").off == {}


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        (SOURCE, 'def scan(x: int) -> "str":\n    """Words."""\n    return "stock scan"', True),
        (SOURCE, '# words\ndef scan(\n    x,\n): return ("stock scan")', True),
        (SOURCE, 'def scan(x): return "other scan"', False),
        (SOURCE, 'def scan(x=1): return "stock scan"', False),
        (SOURCE, 'def same(f): return f\n@same\ndef scan(x): return "stock scan"', False),
    ],
)
def test_only_code_counts(old: str, new: str, same: bool, lab: Lab) -> None:
    def change(library: FakeLibrary) -> None:  # the last of the two is the module's
        text = (library.root / "zlib_fake" / f"{IN_LEAF}.py").read_text()
        head, _, tail = text.rpartition(old)
        library.write(IN_LEAF, head + new + tail)

    registry = lab.arm(adapter("scan", SCAN), change=change)
    found = load(LEAF).scan(1)
    assert (found == ("scan", "stock scan")) is same
    assert state(registry) == {"scan": "applied" if same else "refused"}


def test_a_change_turns_its_group_off_and_nothing_else(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    three = (
        adapter("forward", FORWARD, group="numbers"),
        adapter("load", LOAD, group="numbers"),
        adapter("scan", SCAN, group="saving"),
    )
    with caplog.at_level(logging.WARNING, "zamba_compat"):
        registry = lab.arm(*three, change=rewritten(IN_LEAF, '"stock forward', '"new forward'))
        leaf = load(LEAF)
    assert leaf.Model().forward(1) == "new forward 1"
    assert load(SHARED).load("x") == "stock load"
    assert leaf.scan(1) == ("scan", "stock scan")
    assert state(registry) == {"forward": "refused", "load": "refused", "scan": "applied"}
    verdict = registry.verdict("zlib_fake")
    assert (verdict.off, verdict.guarding_off) == ({"numbers": "Model.forward has changed"}, ["numbers"])
    assert verdict.sentence() == (
        "zlib_fake 5.4.0 is newer than what was tested; 1 adapter applies unchanged, group numbers is off: "
        "Model.forward has changed"
    )
    [record] = caplog.records
    assert record.getMessage() == (
        "zlib_fake 5.4.0 was not tested, and group numbers is off: Model.forward has changed. "
        "Install zlib_fake==5.3.0, or upgrade zamba_compat."
    )


def test_speed_is_no_matter_for_a_warning(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    change = rewritten(IN_LEAF, '"stock forward', '"new forward')
    with caplog.at_level(logging.WARNING, "zamba_compat"):
        registry = lab.arm(adapter("forward", FORWARD, group="speed"), adapter("scan", SCAN), change=change)
        load(LEAF)
    assert not caplog.records
    assert state(registry) == {"forward": "refused", "scan": "applied"}
    assert registry.verdict("zlib_fake").guarding_off == []


def test_what_needs_a_group_goes_with_it(lab: Lab) -> None:
    change = rewritten(IN_LEAF, '"stock forward', '"new forward')
    placed = adapter("scan", SCAN, group="placement", needs=("loading",))
    registry = lab.arm(placed, adapter("forward", FORWARD, group="loading"), change=change)
    assert load(LEAF).scan(1) == "stock scan"
    assert registry.status()[0].reason == "taken back with forward: Model.forward has changed"


def test_a_group_that_is_judged_by_its_results_applies_to_changed_code(lab: Lab) -> None:
    registry = lab.arm(
        adapter("forward", FORWARD, group="numbers"),
        change=rewritten(IN_LEAF, '"stock forward', '"new forward'),
        judged=[("zlib_fake", "numbers")],
    )
    assert load(LEAF).Model().forward(1) == ("forward", "new forward 1")
    [status] = registry.status()
    assert (status.state, status.changed) == ("applied", (FORWARD,))
    assert "what they do is checked since Model.forward changed" in registry.verdict("zlib_fake").sentence()
    registry.refuse("zlib_fake", "numbers", "what it computes is wrong")
    assert load(LEAF).Model().forward(1) == "new forward 1"
    assert state(registry) == {"forward": "failed"}


def test_what_an_adapter_relies_on_counts(lab: Lab) -> None:
    change = rewritten("shared", '"stock load"', '"new load"')
    registry = lab.arm(adapter("scan", SCAN, relies=(LOAD,)), change=change)
    assert load(LEAF).scan(1) == "stock scan"
    assert registry.status()[0].reason == "load has changed"


def test_a_target_that_is_gone_turns_its_group_off(lab: Lab) -> None:
    registry = lab.arm(
        adapter("forward", FORWARD, group="numbers", signature=("self", "x", ...)),
        adapter("scan", SCAN),
        change=rewritten(IN_LEAF, "def forward", "def forwards"),
        judged=[("zlib_fake", "numbers")],
    )
    assert load(LEAF).scan(1) == ("scan", "stock scan")
    assert registry.verdict("zlib_fake").off == {"numbers": "Model.forward is missing"}


def test_a_module_that_is_gone_turns_its_group_off(lab: Lab) -> None:
    gone = adapter("gone", "zlib_fake.integrations.bnb:f", group="quantization")
    registry = lab.arm(gone, adapter("scan", SCAN))
    assert load(LEAF).scan(1) == ("scan", "stock scan")
    assert state(registry) == {"gone": "refused", "scan": "applied"}


@pytest.mark.parametrize(("positional", "state_then"), [(True, "applied"), (False, "refused")])
def test_a_renamed_parameter_that_is_known_by_its_place(positional: bool, state_then: str, lab: Lab) -> None:
    known = adapter(
        "forward", FORWARD, group="numbers", signature=("self", "x", Role("cache", "past", positional=positional))
    )
    registry = lab.arm(
        known,
        change=rewritten(IN_LEAF, "x, cache=None", "x, memory=None"),
        judged=[("zlib_fake", "numbers")],
    )
    load(LEAF)
    assert state(registry) == {"forward": state_then}


def test_what_wraps_a_failed_group_is_put_back_on_the_original(lab: Lab) -> None:
    """The two share an attribute; the first group fails only later, with another module."""
    registry = lab.arm(
        adapter("inner", LOAD, group="loading"),
        adapter("outer", LOAD, group="saving"),
        adapter("late", FORWARD, group="loading", signature=("self", "y", ...)),
        change=rewritten(IN_LEAF, '"stock forward', '"new forward'),
        judged=[("zlib_fake", "loading")],
    )
    shared = load(SHARED)
    assert shared.load("x") == ("outer", ("inner", "stock load"))
    load(LEAF)
    assert shared.load("x") == ("outer", "stock load")
    assert state(registry) == {"inner": "refused", "outer": "applied", "late": "refused"}
    registry.disarm()
    assert shared.load("x") == "stock load"


def test_a_pre_release_of_the_mended_one_is_judged_by_its_code(lab: Lab) -> None:
    mended = rewritten(IN_LEAF, '"stock forward', '"mended forward')
    registry = lab.arm(adapter("forward", FORWARD), adapter("scan", SCAN), version="5.17.0rc1", change=mended)
    leaf = load(LEAF)
    assert (leaf.Model().forward(1), leaf.scan(1)) == ("mended forward 1", ("scan", "stock scan"))
    reasons = {status.name: (status.state, status.reason) for status in registry.status()}
    assert reasons["forward"] == ("not needed", f"a pre-release of 5.17.0, and {FORWARD} is not what it is for")
    assert registry.verdict("zlib_fake").off == {}


def test_drift_in_a_tested_release_stays_an_error(lab: Lab) -> None:
    change = rewritten(IN_LEAF, "def forward", "def forwards")
    lab.arm(adapter("forward", FORWARD), adapter("scan", SCAN), change=change, version="5.3.0")
    refused("Model.forward is missing, although zlib_fake 5.3.0 is one of the tested releases.")


def test_an_editable_install_is_not_a_tested_release(lab: Lab, library: FakeLibrary) -> None:
    def edit(library: FakeLibrary) -> None:
        (library.root / "zlib_fake-5.3.0.dist-info" / "direct_url.json").write_text(
            json.dumps({"url": "file:///somewhere", "dir_info": {"editable": True}})
        )
        library.change(IN_LEAF, '"stock forward', '"edited forward')

    registry = lab.arm(adapter("forward", FORWARD), version="5.3.0", change=edit)
    assert load(LEAF).Model().forward(1) == "edited forward 1"
    assert state(registry) == {"forward": "refused"}
    (library.root / "zlib_fake-5.3.0.dist-info" / "direct_url.json").unlink()


@pytest.mark.parametrize("name", ["scan", "saving"])
def test_switched_off_by_name_or_group(name: str, make_registry: Any, library: FakeLibrary) -> None:
    chosen = {name}
    registry = make_registry(
        adapter("scan", SCAN, group="saving"), adapter("load", LOAD), disabled=lambda: frozenset(chosen)
    )
    registry.arm()
    assert load(LEAF).scan(1) == "stock scan"
    assert load(SHARED).load("x") == ("load", "stock load")
    assert state(registry) == {"scan": "disabled", "load": "applied"}
    chosen.clear()
    registry.disarm()
    registry.arm()
    assert load(LEAF).scan(1) == ("scan", "stock scan")


def test_a_method_that_moved_to_a_base_class_is_found_there(lab: Lab) -> None:
    def change(library: FakeLibrary) -> None:
        library.change(IN_LEAF, '    def forward(self, x, cache=None): return f"stock forward {x}"\n', "")
        library.change(
            "shared", "class PreTrained:\n",
            'class PreTrained:\n    def forward(self, x, cache=None): return f"stock forward {x}"\n',
        )  # fmt: skip

    registry = lab.arm(adapter("forward", FORWARD), change=change)
    assert load(LEAF).Model().forward(1) == ("forward", "stock forward 1")
    assert state(registry) == {"forward": "applied"}


def test_a_function_that_is_imported_now_counts_as_changed(lab: Lab) -> None:
    """Who defines it calls it by its own name, where a replacement here does not reach."""

    def change(library: FakeLibrary) -> None:
        text = (library.root / "zlib_fake" / f"{IN_LEAF}.py").read_text()
        head, _, tail = text.rpartition('def scan(x): return "stock scan"')
        library.write(IN_LEAF, f"{head}from zlib_fake.shared import scan{tail}")
        shared = (library.root / "zlib_fake" / "shared.py").read_text()
        library.write("shared", shared + '\ndef scan(x): return "stock scan"\n')

    registry = lab.arm(adapter("scan", SCAN), change=change)
    assert load(LEAF).scan(1) == "stock scan"
    assert state(registry) == {"scan": "refused"}


def test_a_factory_that_fails_turns_its_group_off(lab: Lab) -> None:
    def broken(original: Any) -> Any:
        raise ImportError("moved")

    save = adapter("save", SAVE, replace=saying("s"))
    registry = lab.arm(adapter("scan", SCAN, replace=broken, group="numbers"), save)
    assert load(LEAF).Model().save() == ("s", "stock save")
    assert registry.verdict("zlib_fake").off == {"numbers": "scan: moved"}
