"""The list of adapters holds together, and taking them back leaves no trace."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.version import Version
from zamba_compat.patches import ADAPTERS

import zamba_compat

ROOT = Path(zamba_compat.__file__).parents[1]


def test_every_file_is_listed() -> None:
    listed = set()
    for adapter in ADAPTERS:
        for patch in adapter.patches:
            if callable(patch.replace):
                listed.add(Path(patch.replace.__code__.co_filename).resolve())
    assert {file.resolve() for file in (ROOT / "patches").glob("*/[!_]*.py")} == listed


def test_docstrings_say_what_when_and_until_when() -> None:
    for file in (ROOT / "patches").glob("*/[!_]*.py"):
        text = file.read_text()
        for word in ("Symptom:", "Upstream:", "Remove:"):
            assert word in text, f"{file.name} does not say {word}"


def test_import_loads_nothing_heavy() -> None:
    code = "import sys; before = set(sys.modules); import zamba_compat; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name for name in done.stdout.split() if name.partition(".")[0] != "zamba_compat"}
    assert not {"torch", "transformers", "numpy", "bitsandbytes", "accelerate", "safetensors", "tokenizers"} & loaded
    # Each costs as much as ten adapters, and is needed only where there is something to mend.
    assert not {"inspect", "dataclasses", "json", "logging", "packaging"} & loaded
    assert len(loaded) < 50


def test_names_that_are_imported_late_are_there() -> None:
    from zamba_compat.layout.sharing import SharingMap

    assert zamba_compat.SharingMap is SharingMap
    assert all(hasattr(zamba_compat, name) for name in zamba_compat.__all__)
    with pytest.raises(AttributeError, match="SharedMap"):
        zamba_compat.SharedMap  # noqa: B018


def test_an_adapter_that_is_continued_says_by_which() -> None:
    known = {a.name: a for a in ADAPTERS}
    continued = [(a, known[a.ends.removeprefix("continued by ")]) for a in ADAPTERS if "continued" in (a.ends or "")]
    assert continued
    for before, after in continued:
        assert before.fixed is not None
        assert Version(before.fixed) == Version(after.since), f"{before.name} ends elsewhere than {after.name} begins"


def _owners() -> dict[str, object]:
    owners = {}
    for adapter in ADAPTERS:
        for target in adapter.targets:
            module, _, path = target.partition(":")
            try:
                owner = importlib.import_module(module)
                for name in path.split(".")[:-1]:
                    owner = getattr(owner, name)
            except (ImportError, AttributeError):
                continue  # not in this release
            owners[target.rpartition(".")[0]] = owner
    return owners


def test_install_uninstall_install_restores_every_target() -> None:
    owners = _owners()
    zamba_compat.uninstall()
    try:
        stock = {name: dict(vars(owner)) for name, owner in owners.items()}
        zamba_compat.install()
        patched = {name: dict(vars(owner)) for name, owner in owners.items()}
        assert patched != stock
        zamba_compat.uninstall()
        assert {name: dict(vars(owner)) for name, owner in owners.items()} == stock
    finally:
        zamba_compat.install()
    assert {a.name for a in zamba_compat.status() if a.state == "applied"} >= {"zamba2-rehydrate", "zamba2-tie-map"}


def test_status_accounts_for_every_adapter() -> None:
    importlib.import_module("transformers.models.zamba2.modeling_zamba2")
    importlib.import_module("transformers.models.zamba.modeling_zamba")
    states = {a.name: a.state for a in zamba_compat.status()}
    assert set(states) == {a.name for a in ADAPTERS}
    assert set(states.values()) <= {"applied", "not needed", "armed"}
