"""Quantizers other than bitsandbytes: the shared blocks are quantized once, computed with, saved and loaded again."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

if os.environ.get("ZAMBA_COMPAT_TEST_STOCK") == "1":
    pytest.skip("tests this package's own interface, and imports it", allow_module_level=True)

pytestmark = pytest.mark.ours
sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from _quantizers.checks import check  # noqa: E402
from _quantizers.compressed import write  # noqa: E402
from _quantizers.rows import ROWS  # noqa: E402

TINY = Path(__file__).parents[1] / "fixtures" / "tiny"
OTHERS = [row for row in ROWS if row.needs not in ("bitsandbytes", "transformers", "hqq")]


@pytest.mark.parametrize("row", OTHERS, ids=[row.name for row in OTHERS])
def test_everything_about_a_format(row: Any, tmp_path: Path) -> None:
    pytest.importorskip(row.needs, reason=f"{row.name} needs {row.needs}")
    # 5.13 and 5.14 save no model of compressed-tensors, a Llama neither: 'NoneType' object has no attribute 'convert'.
    pytest.importorskip("transformers", minversion="5.15" if row.needs == "compressed_tensors" else "5.13")
    result = check(row, TINY, tmp_path)
    assert result.right, result.line


def test_compressed_tensors_in_4x(tmp_path: Path) -> None:
    """Its hook of the first forward, which would prepare a shared module again under each of its names."""
    pytest.importorskip("compressed_tensors", reason="needs compressed-tensors")
    transformers = pytest.importorskip("transformers", minversion="4.57")
    if int(transformers.__version__.partition(".")[0]) > 4:
        pytest.skip("5.x: test_everything_about_a_format")
    from transformers import AutoModelForCausalLM

    load: Any = AutoModelForCausalLM.from_pretrained
    directory = write(TINY / "base", tmp_path / "model", "W4A16")
    ids = (torch.arange(40) * 7 % 250 + 3)[None]
    with torch.no_grad():
        model = load(directory, torch_dtype=torch.float32).eval()
        got = model(ids, use_cache=False).logits
        plain = load(TINY / "base", torch_dtype=torch.float32).eval()
        for name, module in plain.named_modules():
            if isinstance(module, torch.nn.Linear) and ".layers." in name:
                module.weight.copy_(model.get_submodule(name).weight)
        wanted = plain(ids, use_cache=False).logits
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("quantize_shared", [True, False])
def test_the_setting(quantize_shared: bool) -> None:
    pytest.importorskip("torchao", reason="needs torchao")
    pytest.importorskip("transformers", minversion="5.13")
    from transformers import AutoModelForCausalLM

    import zamba_compat

    row = next(row for row in ROWS if row.name == "torchao int8 weight-only")
    before = zamba_compat.configure().quantize_shared
    try:
        zamba_compat.configure(quantize_shared=quantize_shared)
        model = AutoModelForCausalLM.from_pretrained(
            TINY / "base", dtype=torch.float32, quantization_config=row.config()
        )
    finally:
        zamba_compat.configure(quantize_shared=before)
    weight = model.model.layers[1].shared_transformer.self_attn.q_proj.weight
    assert (type(weight).__name__ == "Int8Tensor") is quantize_shared
