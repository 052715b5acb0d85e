"""The adapters that extract-lora writes, loaded by PEFT in both forms of the shared blocks."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conformance.helpers import load, logits
from support import synthetic
from support.synthetic import Config, State
from zamba_compat import separate_modules, share_modules
from zamba_compat.operations.extract_lora import ExtractOptions, extract_lora
from zamba_compat.operations.judge_lora import judge

try:
    import peft
except ImportError as error:  # absent, or it does not take this transformers release
    pytest.skip(f"no PEFT for this release: {error}", allow_module_level=True)

TINY = Path(__file__).parents[2] / "fixtures" / "tiny"
FORMS = {"as built": lambda model: None, "share": share_modules, "separate": separate_modules}
NORMS = ("input_layernorm", "pre_ff_layernorm", "final_layernorm")
ALL = 10_000  # a rank beyond every matrix's


def pair(folder: Path, pattern: str, *, mixers: bool = True) -> tuple[Config, State, State, Path, Path]:
    """Two models of a shape, close to each other; without `mixers` equal in what a mixer holds as bare parameters."""
    config = synthetic.make_config(pattern, time_step_min=1e-9)
    base = synthetic.make_state(config)
    noise = synthetic.make_state(config, seed=1)
    other = {key: (base[key].lerp(noise[key], 0.1)).contiguous() for key in base}
    if not mixers:
        bare = ("A_log", ".D", "dt_bias", "_weight", "dt_proj_bias")
        other |= {key: base[key] for key in base if key.endswith(bare)}
    paths = [synthetic.write_checkpoint(folder / name, state, config) for name, state in (("a", base), ("b", other))]
    return config, base, other, paths[0], paths[1]


def adapted(base: Path, adapter: Path, form: str) -> tuple[Any, list[str]]:
    """The base with the adapter, and what PEFT said of missing keys."""
    model = load(base, torch_dtype=torch.float32)
    FORMS[form](model)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = peft.PeftModel.from_pretrained(model, str(adapter)).eval()
    return model, [str(one.message) for one in told if "missing" in str(one.message)]


def assert_same(found: Tensor, wanted: Tensor) -> None:
    assert (found - wanted).norm() <= 2e-5 * wanted.norm()


@pytest.mark.parametrize(
    ("pattern", "saved"),
    [
        ("7B", (*NORMS, "norm", "conv1d", "embed_tokens")),
        ("1.2B", (*NORMS, "mamba", "embed_tokens")),
        (synthetic.ZAMBA1, ("norm", "conv1d", "embed_tokens")),
    ],
)
def test_full_rank_is_the_tuned_model(pattern: str, saved: tuple[str, ...], tmp_path: Path) -> None:
    config, _, _, first, second = pair(tmp_path, pattern, mixers="mamba" in saved)
    report = extract_lora(first, second, tmp_path / "out", ExtractOptions(ALL, modules_to_save=saved))
    assert not report.left and report.total is not None and report.total.kept == pytest.approx(1)
    ids = synthetic.make_ids(config, 12, rows=2)
    wanted = logits(load(second, torch_dtype=torch.float32), ids)
    assert (logits(load(first, torch_dtype=torch.float32), ids) - wanted).norm() > 1e-2 * wanted.norm()
    for form in FORMS:
        model, missing = adapted(first, tmp_path / "out", form)
        assert_same(logits(model, ids), wanted)
        if form == "separate":  # of one module PEFT misses every name but the first
            assert not missing


def test_a_position_each(tmp_path: Path) -> None:
    config, base, _, first, _ = pair(tmp_path, "7B")
    apart = synthetic.to_divergent(base, config, scale=0.1)
    second = synthetic.write_checkpoint(tmp_path / "c", apart, config)
    options = ExtractOptions(ALL, per_position=True, modules_to_save=NORMS)
    report = extract_lora(first, second, tmp_path / "out", options)
    assert not report.left
    ids = synthetic.make_ids(config, 12)
    model, missing = adapted(first, tmp_path / "out", "separate")
    assert_same(logits(model, ids), logits(load(second, torch_dtype=torch.float32), ids))
    assert not missing


def test_trained_pair(tmp_path: Path) -> None:
    base, tuned = str(TINY / "base"), str(TINY / "tuned")
    report = extract_lora(base, tuned, tmp_path / "out", ExtractOptions(64))
    found = judge(report, {"text": (TINY / "text_tuned.txt").read_text()[:4000]})
    one, other = (model.perplexities["text"].per_byte for model in found.models.models)
    assert other < found.adapted["text"].per_byte < other + 0.35 * (one - other)
    assert found.scores()[-1][0] == "base + adapter"
