"""Every release lies against a defect's bounds where PEP 440 puts it."""

from __future__ import annotations

import re
import sys
from types import ModuleType

import pytest

from zamba_compat._engine.releases import installed_version, place


@pytest.mark.parametrize(
    ("since", "fixed", "version", "kind", "reason"),
    [
        ("5.1", "5.17", "5.1", "inside", ""),
        ("5.1", "5.17", "5.1.0", "inside", ""),
        ("5.1", "5.17", "5.16.99", "inside", ""),
        ("5.1", "5.17", "5.16.1+cu118", "inside", ""),
        ("5.1", "5.17", "5.10.0.dev0", "inside", ""),
        ("5.1", "5.17", "5.0.9", "outside", "begins in 5.1"),
        ("5.1", "5.17", "5.17.0", "outside", "fixed in 5.17"),
        ("5.1", "5.17", "5.17.1.dev0", "outside", "fixed in 5.17"),
        ("5.1", "5.17", "5.17.0rc1", "boundary", "a pre-release of 5.17"),
        ("5.1", "5.17", "5.17.0.dev0", "boundary", "a pre-release of 5.17"),
        ("5.1", "5.17", "5.1.0rc0", "boundary", "a pre-release of 5.1"),
        ("5.1", None, "99.0", "inside", ""),
        ("5.1", None, "5.99.0.dev0", "inside", ""),
        ("5.1", None, "5.0", "outside", "begins in 5.1"),
        ("5.1", "5.17", "my-fork", "boundary", "'my-fork' is no version"),
        ("5.1", None, None, "boundary", "its version cannot be told"),
    ],
)
def test_places_a_release(since: str, fixed: str | None, version: str | None, kind: str, reason: str) -> None:
    found = place(since, fixed, "fixed", version)
    assert found.kind == kind
    assert re.match(f"{reason}$" if kind == "inside" else reason, found.reason)


def test_says_what_ended_it() -> None:
    assert place("5.0", "5.1", "continued by other", "5.1").reason == "continued by other in 5.1"


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
