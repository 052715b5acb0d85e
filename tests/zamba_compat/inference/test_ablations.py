"""Parts left out of a model: what is left is what it would be without them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from support import synthetic
from support.reference import forward
from zamba_compat.errors import ZambaCompatError
from zamba_compat.inference import ablations
from zamba_compat.inference.evaluation import evaluate
from zamba_compat.inference.loading import Loading, load

from .conftest import TINY

TEXT = (TINY / "text_base.txt").read_text(encoding="utf-8")[:1500]


def with_tokenizer(directory: Path) -> str:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_bytes((TINY / "base" / name).read_bytes())
    return str(directory)


def logits(directory: str, ids: Any, ablate: str | None) -> Any:
    with torch.no_grad():
        return load(directory, Loading(load="fp32", device="cpu", ablate=ablate)).model(ids).logits


@pytest.mark.parametrize(
    ("name", "change"), [("no-rope", {"use_mem_rope": False}), ("long", {"use_long_context": True})]
)
def test_the_config_is_what_changes(name: str, change: dict[str, Any], tmp_path: Path) -> None:
    case = synthetic.case("7B", length=24, time_step_min=1e-9)
    directory = with_tokenizer(synthetic.write_checkpoint(tmp_path / "model", case.state, case.config))
    wanted = forward(case.state, {**case.config, **change}, case.ids)
    norm = torch.linalg.vector_norm
    off = {part: float(norm(logits(directory, case.ids, part) - wanted) / norm(wanted)) for part in (None, name)}
    assert off[name] < 2e-5 < 1e-3 < off[None]


def test_adapters_come_down_to_a_rank(tmp_path: Path) -> None:
    loaded = load(str(TINY / "base"), Loading(load="fp32", device="cpu"))
    cut = load(str(TINY / "base"), Loading(load="fp32", device="cpu", ablate="rank-3"))
    compared = 0
    for (down, up), (cut_down, cut_up) in zip(
        ablations._adapters(loaded.model, ""), ablations._adapters(cut.model, ""), strict=True
    ):
        whole, product = (up @ down).detach().double(), (cut_up @ cut_down).detach().double()
        values = torch.linalg.svdvals(whole)
        assert torch.linalg.matrix_rank(product, rtol=1e-5) == 3
        # Eckart and Young: what is lost are exactly the other singular values.
        lost = float(torch.linalg.matrix_norm(whole - product))
        assert lost == pytest.approx(float(values[3:].norm()), rel=1e-3)
        compared += 1
    assert compared == len(loaded.model.config.hybrid_layer_ids)


def test_rows_of_the_table() -> None:
    found = evaluate([str(TINY / "base")], texts={"base": TEXT}, ablate=["no-rope", "rank-1", "long"])
    names = [one.model.removeprefix(str(TINY / "base")).strip() for one in found.models]
    assert names == ["", "(no-rope)", "(rank-1)", "(long)"]
    whole, *without = (one.perplexities["base"].nats for one in found.models)
    assert all(nats > whole for nats in without), (whole, without)


@pytest.mark.parametrize("name", ["", "rope", "rank-", "rank-0", "rank--1", "rank-x", "rank-\u00b2"])
def test_other_names(name: str) -> None:
    with pytest.raises(ZambaCompatError, match="is no ablation"):
        Loading(ablate=name)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("no-rope", {"model_type": "llama"}, "an ablation of Zamba2"),
        ("no-rope", {"use_mem_rope": False}, "no rotary embedding"),
        ("long", {"use_mem_rope": False}, "no rotary embedding"),
        ("long", {"use_long_context": True}, "already"),
        ("rank-64", {}, "rank 64"),
    ],
)
def test_nothing_to_leave_out(name: str, config: dict[str, Any], message: str) -> None:
    usual = {"model_type": "zamba2", "use_mem_rope": True, "use_long_context": False, "adapter_rank": 64}
    with pytest.raises(ZambaCompatError, match=message):
        ablations.changed(SimpleNamespace(**usual | config), name, "there")


def test_quantized_adapters() -> None:
    pytest.importorskip("bitsandbytes")
    with pytest.raises(ZambaCompatError, match="quantized"):
        load(str(TINY / "base"), Loading(load="4bit", device="cpu", ablate="rank-3"))
