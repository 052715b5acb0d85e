"""The README's longer examples run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "fixtures" / "tiny" / "base"
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)


@pytest.mark.slow
def test_qlora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """QLoRA on one text again and again: the loss falls, and the adapter that is saved holds each block's once."""
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("peft")
    from safetensors import safe_open

    (code,) = [block for block in BLOCKS if "prepare_model_for_kbit_training" in block]
    code = code.replace("path/or/name", str(TINY)).replace(".loss\n", ".loss\n    losses.append(loss.item())\n")
    names = {"texts": ["def f(x):\n    return x + 1\n" * 4] * 6, "losses": []}
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), names)
    losses = names["losses"]
    assert len(losses) == 6 and losses[-1] < losses[0] - 0.05
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", "pt") as file:
        shared = {key.partition(".layers.")[2].split(".")[0] for key in file.keys() if "shared_transformer" in key}  # noqa: SIM118
    assert len(shared) == names["model"].config.num_mem_blocks
