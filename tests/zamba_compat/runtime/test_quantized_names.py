"""Quantized checkpoints of the libraries that are installed, in every layout, under wrappers' names, and converted."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import zamba_compat  # noqa: F401  before transformers
from zamba_compat.errors import CheckpointError
from zamba_compat.operations.convert import Options, convert

sys.path.insert(0, str(Path(__file__).parents[3] / "tools"))

from _quantizers.compressed import write
from _quantizers.layouts import rewrite
from _quantizers.rows import ROWS

TINY = Path(__file__).parents[2] / "fixtures" / "tiny" / "base"
FORMATS = ("bitsandbytes NF4", "bitsandbytes int8", "torchao int8 weight-only", "compressed-tensors W4A16")
WRAPPERS = ("", "module.", "_orig_mod.", "base_model.model.", "model.", "_fsdp_wrapped_module.")
FOREIGN = ("student.",)
IDS = (torch.arange(40) * 7 % 250 + 3)[None]


def load(directory: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **options).eval()


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(IDS, use_cache=False).logits.clone()


@cache
def saved(format: str) -> tuple[Path, Tensor]:
    """A checkpoint that the library made, and its logits."""
    row = next(row for row in ROWS if row.name == format)
    pytest.importorskip(row.needs, reason=f"{format} needs {row.needs}")
    if row.needs != "bitsandbytes":
        pytest.importorskip("transformers", minversion="5.13")
    top = Path(mkdtemp())
    if row.scheme is not None:
        directory = write(TINY, top, row.scheme)
        return directory, logits(load(directory))
    assert row.config is not None
    model = load(TINY, quantization_config=row.config())
    model.save_pretrained(top)
    return top, logits(load(top))


def tensors(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "model.safetensors")


def wrapped(directory: Path, prefixes: list[str]) -> list[str]:
    """Rename every tensor in place, and what torchao says of it; the names it has then."""
    from zamba_compat.checkpoint.layouts.other_formats import renamed_header

    with safe_open(directory / "model.safetensors", "pt") as file:
        metadata = dict(file.metadata())
    state = tensors(directory)
    names = {prefixes[n % len(prefixes)] + name: name for n, name in enumerate(state)}
    header = {"format": "pt", **renamed_header(metadata, list(names.items()))}
    save_file({new: state[name].clone() for new, name in names.items()}, directory / "model.safetensors", header)
    return list(names)


@pytest.mark.parametrize("format", FORMATS)
def test_the_saved_models_logits_or_an_error_that_names_tensors(format: str) -> None:
    source, wanted = saved(format)

    @given(
        layout=st.sampled_from(["hub", "expanded", "partial"]),
        prefixes=st.lists(st.sampled_from(WRAPPERS + FOREIGN), min_size=1, max_size=2),
    )
    @settings(max_examples=6, deadline=None, derandomize=True)
    def loads(layout: str, prefixes: list[str]) -> None:
        with TemporaryDirectory() as directory:
            copy = rewrite(source, Path(directory), layout)
            names = wrapped(copy, prefixes)
            try:
                found = logits(load(copy))
            except CheckpointError as error:
                assert set(prefixes) & set(FOREIGN), error
                assert any(name in str(error) for name in names), error
            else:
                assert torch.equal(found, wanted)

    loads()


@pytest.mark.parametrize("format", FORMATS)
def test_converted(format: str, tmp_path: Path) -> None:
    source, wanted = saved(format)
    convert(source, tmp_path / "expanded", Options(layout="expanded"))
    convert(tmp_path / "expanded", tmp_path / "hub")
    before, after = tensors(source), tensors(tmp_path / "hub")
    assert before.keys() == after.keys()
    assert all(before[name].dtype == after[name].dtype and torch.equal(before[name], after[name]) for name in before)
    assert len(tensors(tmp_path / "expanded")) > len(before)
    for layout in ("expanded", "hub"):
        assert torch.equal(logits(load(tmp_path / layout)), wanted)
