"""Requirements are bounded on both sides, and every release lies where PEP 440 puts it."""

from __future__ import annotations

import re
import sys
from types import ModuleType

import pytest

from zamba_compat._engine.releases import Pin, installed_version, judge
from zamba_compat.errors import AdapterError


@pytest.mark.parametrize(
    ("requirement", "what"),
    [
        ("transformers", "No library"),
        ("transformers>=5.1", "No upper bound"),
        ("transformers<5.17", "No lower bound"),
        ("transformers>=5.1,!=5.3", "No upper bound"),
        ("transformers>=5.x,<6", "No library"),
        ("transformers>=5.1,<5.17;python_version<'4'", "No library"),
        ("transformers===5.1", "No library"),
        ("transformers[torch]>=5.1,<5.17", "No library"),
        ("transformers>=5.17,<5.1", "No release"),
        (">=5.1,<5.17", "No library"),
        ("", "No library"),
    ],
)
def test_refuses_a_requirement_that_is_open_or_malformed(requirement: str, what: str) -> None:
    with pytest.raises(AdapterError, match=f"^adapter x: {what}.*both bounds"):
        Pin.parse(requirement, where="adapter x")


@pytest.mark.parametrize(
    ("requirement", "library"),
    [
        ("transformers>=5.1,<5.17", "transformers"),
        (" transformers >= 5.1 , < 5.17 ", "transformers"),
        ("my-lib.core ==5.0.*", "my-lib.core"),
        ("lib~=5.1", "lib"),
        ("lib==5.0.0", "lib"),
        ("lib>=4.49.0rc1,<=5.0.0.post1,!=4.50.*", "lib"),
        ("lib>=0,<1", "lib"),
        ("lib>=5.0.0,<=5", "lib"),
    ],
)
def test_reads_a_bounded_requirement(requirement: str, library: str) -> None:
    pin = Pin.parse(requirement, where="adapter x")
    assert pin.library == library
    assert str(pin) == requirement.replace(" ", "")


@pytest.mark.parametrize(
    ("requirement", "version", "kind", "reason"),
    [
        ("lib>=5.1,<5.17", "5.1", "inside", ""),
        ("lib>=5.1,<5.17", "5.1.0", "inside", ""),
        ("lib>=5.1,<5.17", "5.16.99", "inside", ""),
        ("lib>=5.1,<5.17", "5.16.1+cu118", "inside", ""),
        ("lib>=5.1,<5.17", "5.10.0.dev0", "inside", ""),
        ("lib>=5.1,<5.17", "5.2.0rc1", "inside", ""),
        ("lib>=5.1,<5.17", "5.0.9", "outside", "begins in 5.1"),
        ("lib>=5.1,<5.17", "5.17.0", "outside", "fixed in 5.17"),
        ("lib>=5.1,<5.17", "5.17.1.dev0", "outside", "fixed in 5.17"),
        ("lib>=5.1,<5.17", "5.17.0rc1", "unpinned", "a pre-release of 5.17"),
        ("lib>=5.1,<5.17", "5.17.0.dev0", "unpinned", "a pre-release of 5.17"),
        ("lib>=5.1,<5.17", "5.1.0rc0", "unpinned", "a pre-release of 5.1"),
        ("lib>=5.1,<=5.16.1", "5.16.1", "inside", ""),
        ("lib>=5.1,<=5.16.1", "5.16.2", "outside", "fixed after 5.16.1"),
        ("lib>5.1,<5.17", "5.1", "outside", "begins after 5.1"),
        ("lib==5.0.0", "5.0.0", "inside", ""),
        ("lib==5.0.0", "4.57", "outside", "begins in 5.0.0"),
        ("lib==5.0.0", "5.0.1", "outside", "fixed after 5.0.0"),
        ("lib==5.0.*", "5.0.7", "inside", ""),
        ("lib==5.0.*", "5.1", "outside", r"fixed after 5.0.\*"),
        ("lib~=5.1", "5.9", "inside", ""),
        ("lib~=5.1", "6.0", "outside", "fixed after 5.1"),
        ("lib>=5.1,<5.17,!=5.3.*", "5.3.2", "outside", r"!=5.3.\* leaves it out"),
        ("lib>=5.1,<5.17,!=5.3.*", "5.4", "inside", ""),
        ("lib!=5.3.*,>=5.4,<5.17", "5.3.0", "outside", "begins in 5.4"),
        ("lib>=5.1,<5.17", "my-fork", "unpinned", "'my-fork' is not a version"),
    ],
)
def test_places_a_release(requirement: str, version: str, kind: str, reason: str) -> None:
    verdict = judge(Pin.parse(requirement, where="x"), version, "fixed")
    assert verdict.kind == kind
    assert re.match(f"{reason}$" if kind == "inside" else reason, verdict.reason)


def test_says_what_ended_the_range() -> None:
    pin = Pin.parse("lib>=5.0,<5.1", where="x")
    assert judge(pin, "5.1", "another defect").reason == "another defect in 5.1"
    newer = judge(pin, "5.1", None)
    assert newer.kind == "unpinned"
    assert newer.reason == "newer than the releases it is pinned for (>=5.0,<5.1)"
    assert judge(pin, "4.57", None).kind == "outside"


@pytest.mark.parametrize(
    ("dunder", "stored", "version"),
    [
        ("5.4.0", "5.3.0", "5.4.0"),
        (None, "5.3.0", "5.3.0"),
        ("unknown", "5.3.0", "5.3.0"),
        (5, "5.3.0", "5.3.0"),
        ("unknown", None, "unknown"),
        (None, None, None),
        ("5.4.0", None, "5.4.0"),
    ],
)
def test_the_imported_module_knows_its_release_best(
    dunder: object, stored: str | None, version: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib import metadata

    def read(name: str) -> str:
        if stored is None:
            raise metadata.PackageNotFoundError(name)
        return stored

    module = ModuleType("some_lib")
    if dunder is not None:
        vars(module)["__version__"] = dunder
    monkeypatch.setitem(sys.modules, "some_lib", module)
    monkeypatch.setattr(metadata, "version", read)
    assert installed_version("some-lib") == version


def test_reads_the_metadata_of_a_library_that_is_not_imported() -> None:
    from importlib import metadata

    assert installed_version("pytest") == metadata.version("pytest")
    assert installed_version("no-such-distribution-at-all") is None
