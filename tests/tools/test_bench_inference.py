"""The benchmark of inference: which kernels ran, how many rows fit, and the whole of it on a small model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from _bench import contestants
from _bench.first_token import Contestant
from _bench.kernels_ran import in_words
from _bench.rows import is_out_of_memory, largest
from _bench.speed_report import report
from support import fused_kernels

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "fixtures" / "tiny" / "base" / "config.json"
ASKED = {"device": "cpu", "lengths": [8, 16], "tokens": 3, "seconds": 10}


@pytest.fixture(scope="module")
def model() -> Any:
    import zamba_compat  # noqa: F401

    return contestants.build(json.loads(TINY.read_text()), torch.float32, "cpu", nf4=False)


def test_kernels_that_run_are_seen(model: Any) -> None:
    contestant = Contestant(model, ASKED)
    with torch.inference_mode():
        assert contestant.kernels() == {"prompt": [], "token": []}
        with fused_kernels.in_use():
            found = contestant.kernels()
    assert found["prompt"] == ["causal_conv1d_fn", "mamba_chunk_scan_combined"]
    assert found["token"] == ["causal_conv1d_update", "selective_state_update"]
    assert in_words(found["prompt"]) == "mamba_ssm and causal_conv1d (causal_conv1d_fn, mamba_chunk_scan_combined)"
    assert in_words([]) == "plain"


def test_most_rows_that_fit() -> None:
    for limit in range(1, 200):
        for most in (1, 7, 64, 150):
            tried: list[int] = []

            def fits(rows: int, limit: int = limit, tried: list[int] = tried) -> bool:
                tried.append(rows)
                return rows <= limit

            found, right = largest(fits, most), min(limit, most)
            assert right * 7 / 8 <= found <= right and max(tried) <= most
    assert largest(lambda rows: rows <= 4, most=64, least=8) == 0


def test_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as none_left:
        torch.empty(1 << 58, dtype=torch.uint8).fill_(1)
    assert is_out_of_memory(none_left.value)
    with pytest.raises(RuntimeError) as another:
        torch.ones(2) @ torch.ones(3)
    assert not is_out_of_memory(another.value)


def test_what_does_not_fit_is_left_out(model: Any) -> None:
    """A prompt whose embeddings alone are beyond any machine's memory."""
    contestant = Contestant(model, {**ASKED, "rows": [2], "most": 4})
    with torch.inference_mode():
        handle = model.model.embed_tokens.register_forward_hook(_more_than_there_is)
        try:
            found = contestant.everything()
        finally:
            handle.remove()
    assert set(found["lengths"]) == {8, 16} and set(found["rows"]) == {2} and found["largest"] == 2


def _more_than_there_is(module: Any, args: tuple[torch.Tensor], output: torch.Tensor) -> None:
    if args[0].shape[0] > 2:
        torch.empty(1 << 58, dtype=torch.uint8).fill_(1)


def test_the_table() -> None:
    row = {"first": 0.5, "token": 0.02, "peak": 2e9, "cache": 8e6}
    figures: dict[str, dict[str, Any]] = {
        "import": {
            "lengths": {1024: row},
            "rows": {8: row, 96: row},
            "largest": 96,
            "kernels": {"prompt": ["mamba_chunk_scan_combined"], "token": []},
        },
        "llama": {"lengths": {1024: row}, "rows": {8: {**row, "token": 0.04}}, "largest": 8},
    }
    text = "\n".join(report(figures, "here"))
    assert "Several prompts of 1024 tokens at once" in text
    assert "| 8 | Zamba2, zamba_compat, bfloat16 | 0.50 | 400 | 2.00 | 2.00 | 1.0 |" in text
    assert "| 96, most | Zamba2, zamba_compat, bfloat16 | 0.50 | 4800 |  | 2.00 | 0.1 |" in text
    assert "Kernels of Zamba2, zamba_compat, bfloat16: mamba_ssm (mamba_chunk_scan_combined) for a prompt" in text


def test_the_whole_tool() -> None:
    """A Zamba2 with the import beside a Llama, in processes of their own."""
    command = [sys.executable, "tools/bench_inference.py", "--config", str(TINY), "--lengths", "16", "--tokens", "3"]
    command += ["--rows", "2", "--most", "4", "--contestants", "import", "llama"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("Zamba2, zamba_compat, bfloat16", "Llama of as many parameters, bfloat16"):
        for rows in ("16", "2", "4, most"):
            assert f"| {rows} | {name} |" in done.stdout
        assert f"Kernels of {name}: plain." in done.stdout
