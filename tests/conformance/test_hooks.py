"""Hooks on a mixer's and a shared block's modules see what stock's see: once, whole tensors, the same dtypes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from support import call_log

pytestmark = pytest.mark.ours
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TOLERANCE = {"float32": 2e-5, "bfloat16": 0.03}
ALONE = (
    "mamba.in_proj", "mamba.conv1d", "mamba.act", "mamba.norm", "mamba.out_proj", "self_attn", "self_attn.q_proj",
    "self_attn.o_proj", "feed_forward", "feed_forward.gate_up_proj", "feed_forward.act_fn", "feed_forward.down_proj",
    "input_layernorm", "pre_ff_layernorm",
)  # fmt: skip


@pytest.fixture(scope="module")
def stock() -> dict[str, call_log.Log]:
    """What stock transformers of this release shows, by dtype and scene."""
    script = Path(call_log.__file__)
    done = subprocess.run(
        [sys.executable, str(script)], env=dict(os.environ), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, call_log.Log] = json.loads(done.stdout.splitlines()[-1])
    assert all(len(log) > 40 for log in found.values())
    return found


@pytest.fixture(scope="module")
def models(armed: bool) -> dict[str, Any]:
    return {name: call_log.build(dtype) for name, dtype in DTYPES.items()}


def counted(log: Any) -> Counter[str]:
    return Counter(json.dumps(entry) for entry in log)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scene", ["prompt", "padded", "tokens"])
def test_every_module_at_once(scene: str, dtype: str, stock: dict[str, call_log.Log], models: dict[str, Any]) -> None:
    plain = call_log.run(models[dtype], scene)
    log, logits = call_log.record(models[dtype], "forward", scene)
    assert log == stock[f"{dtype} {scene}"], "in stock's order"
    off = (logits.double() - plain.double()).norm() / plain.double().norm()
    assert off < TOLERANCE[dtype], "being watched changes no number"


@pytest.mark.parametrize("scene", ["prompt", "tokens"])
@pytest.mark.parametrize("kind", [kind for kind in call_log.KINDS if kind not in ("forward", "backward")])
def test_other_kinds_of_hooks(kind: str, scene: str, stock: dict[str, call_log.Log], models: dict[str, Any]) -> None:
    log, _ = call_log.record(models["bfloat16"], kind, scene)
    theirs = stock[f"bfloat16 {scene} accelerate" if kind == "accelerate" else f"bfloat16 {scene}"]
    wanted = [entry[:2] if kind == "pre" else entry for entry in theirs]
    assert counted(log) == counted(wanted)


@pytest.mark.parametrize("only", ALONE)
@pytest.mark.parametrize("scene", ["prompt", "tokens"])
def test_one_module_alone(only: str, scene: str, stock: dict[str, call_log.Log], models: dict[str, Any]) -> None:
    log, _ = call_log.record(models["bfloat16"], "forward", scene, only)
    assert log == [entry for entry in stock[f"bfloat16 {scene}"] if entry[0].endswith(only)]


def test_backward_hooks(stock: dict[str, call_log.Log], models: dict[str, Any]) -> None:
    log, _ = call_log.record(models["float32"], "backward", "gradients")
    assert counted(log) == counted(stock["float32 gradients"])
