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
from _quantizers.rows import ROWS  # noqa: E402

TINY = Path(__file__).parents[1] / "fixtures" / "tiny"
OTHERS = [row for row in ROWS if row.needs not in ("bitsandbytes", "transformers", "hqq")]


@pytest.mark.parametrize("row", OTHERS, ids=[row.name for row in OTHERS])
def test_everything_about_a_format(row: Any, tmp_path: Path) -> None:
    pytest.importorskip(row.needs, reason=f"{row.name} needs {row.needs}")
    transformers = pytest.importorskip("transformers", minversion="5.13")
    assert transformers
    result = check(row, TINY, tmp_path)
    assert result.right, result.line


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
