"""A model that is no Zamba computes with the import what it computes without, bit for bit."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from torch import Tensor

from support import other_models

pytestmark = pytest.mark.ours
OLDEST = Version("4.53")  # whose stock quantizes on a CPU
QUANTIZED = importlib.util.find_spec("bitsandbytes") is not None and Version(version("transformers")) >= OLDEST
IN_FLOAT32 = [kind for kind in other_models.KINDS if kind.endswith("in float32")]


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    file = tmp_path_factory.mktemp("stock") / "logits.pt"
    command = [sys.executable, str(other_models.__file__), str(file), *(["bitsandbytes"] if QUANTIZED else [])]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Tensor] = torch.load(file)
    return found


@pytest.fixture
def model(armed: bool, kind: str, tmp_path: Path) -> Any:
    if other_models.KINDS[kind][1] and not QUANTIZED:
        pytest.skip("no bitsandbytes here, or none on a CPU in this release")
    return other_models.build(kind, tmp_path)


@pytest.mark.parametrize("kind", [kind for kind in other_models.KINDS if kind not in IN_FLOAT32])
def test_stocks_bits(kind: str, model: Any, stock: dict[str, Tensor]) -> None:
    for tokens in other_models.TOKENS:
        assert torch.equal(other_models.logits(model, tokens), stock[f"{kind} {tokens}"]), tokens


@pytest.mark.parametrize("kind", IN_FLOAT32)
def test_float32_is_computed_in_float32(kind: str, model: Any, stock: dict[str, Tensor], tmp_path: Path) -> None:
    """Within 1e-4 of a float32 model with the dequantized weights, on processors that have a bfloat16 kernel, too."""
    from bitsandbytes.functional import dequantize_4bit

    plain = other_models.build("float32", tmp_path)
    modules = dict(model.named_modules())
    for name, module in plain.named_modules():
        if hasattr(module, "weight") and hasattr(modules[name].weight, "quant_state"):
            weight = modules[name].weight
            module.weight.data = dequantize_4bit(weight.data, weight.quant_state).float()
    for tokens in other_models.TOKENS:
        found, wanted = other_models.logits(model, tokens), other_models.logits(plain, tokens)
        assert (found - wanted).norm() < 1e-4 * wanted.norm(), tokens
