"""Answers of two models are told apart though both lie in one directory, one after the other."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from zamba_compat.inference import fingerprint as module
from zamba_compat.inference.fingerprint import fingerprint

from .conftest import TINY


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY / "base", tmp_path / "model"))


def test_a_copy_is_the_same_model(model: Path) -> None:
    for name in ("README.md", "answers.jsonl", "answers.jsonl.state.json", "report.json", "prompts.txt"):
        (model / name).write_text("words")
    assert fingerprint(str(model)) == fingerprint(str(TINY / "base")) is not None


def test_other_weights_in_its_place_are_another(model: Path) -> None:
    before = fingerprint(str(model))
    for path in (TINY / "tuned").iterdir():
        shutil.copy(path, model)
    assert fingerprint(str(model)) != before


@pytest.mark.parametrize("at", [0, 0.3, 0.77, 1])
def test_a_change_of_a_part_of_a_large_file_is_seen(model: Path, at: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIECE", 64)
    weights = next(model.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    assert len(data) > 4 * 256 * 64  # not read whole
    before, length = fingerprint(str(model)), len(data) // 200
    start = int(at * (len(data) - length))
    data[start : start + length] = bytes(byte ^ 1 for byte in data[start : start + length])
    weights.write_bytes(data)
    assert fingerprint(str(model)) != before


def test_a_config_counts(model: Path) -> None:
    before = fingerprint(str(model))
    (model / "generation_config.json").write_text('{"eos_token_id": 5}')
    assert fingerprint(str(model)) != before


def test_what_is_no_checkpoint_is_left_to_loading(tmp_path: Path) -> None:
    assert fingerprint(str(tmp_path / "absent")) is None
    assert fingerprint(str(tmp_path)) is None
