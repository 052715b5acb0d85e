"""An adapter that is off is missed by a test; one that nobody misses is named, and fails the check."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import check_adapters
from conformance import mending
from conformance.mending import Bounds, adapters_of, applies


def test_an_adapter_that_is_off_is_missed(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_adapters.main(["--adapters", "zamba2-embeddings-generation,zamba2-folded-products"]) == 0
    printed = capsys.readouterr().out
    assert "test_decoding.py::test_generate_from_embeddings[1.2B]" in printed
    assert "speed: right without it" in printed


def test_one_that_nobody_misses_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(command: list[str], **_: Any) -> None:
        found = {
            "missed": {"tests": 2, "noticed_by": "test_a.py::test_it", "group": "tying"},
            "hole": {"tests": 1, "noticed_by": None, "group": "tying"},
            "fast": {"tests": 0, "noticed_by": None, "group": "speed"},
        }
        Path(command[command.index("--switch-off") + 1]).write_text(json.dumps(found))

    monkeypatch.setattr(check_adapters, "REPORTS", tmp_path)
    monkeypatch.setattr(subprocess, "run", run)
    assert check_adapters.main([]) == 1
    assert capsys.readouterr().out.splitlines()[-1].endswith("nobody notices that hole is off")


def test_what_need_not_be_missed() -> None:
    assert check_adapters.reason("zamba2-tie-map", "tying", "5.23.0") is None
    assert check_adapters.reason("any", "speed", "5.23.0")
    assert check_adapters.reason("quant-state-per-module", "quantization", "4.57.6")
    assert check_adapters.reason("quant-state-per-module", "quantization", "5.0.0") is None


# From markers and bounds to what is expected


@pytest.mark.parametrize(
    ("release", "narrower", "expected"),
    [
        ("4.57.6", {}, False), ("5.0.0", {}, True), ("5.16.1", {}, True), ("5.17.0", {}, False),
        ("5.1.0", {"fixed": "5.1"}, False), ("5.0.0", {"fixed": "5.1"}, True), ("5.0.0", {"since": "5.1"}, False),
        ("5.17.0", {"fixed": "6"}, False),
    ],
)  # fmt: skip
def test_where_an_adapter_applies(release: str, narrower: dict[str, str], expected: bool) -> None:
    assert applies(Bounds("transformers", "5.0", "5.17"), release, **narrower) == expected


def test_adapters_of_another_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mending, "installed", {"bitsandbytes": "0.50.2"}.get)
    assert applies(Bounds("bitsandbytes", "0.49", None), "4.49.0")
    assert not applies(Bounds("bitsandbytes", "0.49", "0.50"), "4.49.0")
    assert not applies(Bounds("peft", "0.16", None), "4.49.0")


def named(*marks: pytest.MarkDecorator, **params: Any) -> list[str]:
    item: Any = SimpleNamespace(
        nodeid="a test",
        callspec=SimpleNamespace(params=params),
        iter_markers=lambda name: [mark.mark for mark in marks if mark.name == name],
    )
    return list(adapters_of(item, "5.16.1"))


def test_the_adapters_of_a_test() -> None:
    mark = pytest.mark.mended_by
    assert named(mark("zamba2-block-order", "zamba2-tied-keys")) == ["zamba2-block-order"]
    assert named(mark("zamba2-block-order", when=lambda p: p["n"] > 1), n=1) == []
    assert named(mark("zamba2-block-order", when=lambda p: p["n"] > 1), n=2) == ["zamba2-block-order"]
    assert named(pytest.mark.relies_on("zamba2-block-order")) == []
    with pytest.raises(pytest.UsageError, match="does not exist: zamba2-blok-order"):
        named(mark("zamba2-blok-order"))
