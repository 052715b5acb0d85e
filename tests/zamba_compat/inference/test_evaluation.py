"""Models side by side, in one process and in two."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest

from zamba_compat.errors import ZambaCompatError
from zamba_compat.inference import evaluation
from zamba_compat.inference.evaluation import evaluate
from zamba_compat.inference.loading import Loading
from zamba_compat.inference.questions import read_questions

from .conftest import TINY

BOTH = [str(TINY / "base"), str(TINY / "tuned")]
TEXTS = {name: (TINY / f"text_{name}.txt").read_text(encoding="utf-8")[:1500] for name in ("base", "tuned")}
ROOT = Path(__file__).parents[3]


WATCH = """
from pathlib import Path
from zamba_compat.inference import processes

def spread(items, work, spread=processes.spread):
    def watched(item):
        Path(__file__).with_name(f"rank{processes.rank()}of{processes.world_size()}").touch()
        return work(item)
    return spread(items, watched)

processes.spread = spread
"""


def test_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[Any] = []
    load = evaluation.load

    def watched(name: str, how: Loading) -> Any:
        gc.collect()
        assert all(model() is None for model in alive), "the model before is still there"
        loaded = load(name, how)
        alive.append(weakref.ref(loaded.model))
        return loaded

    monkeypatch.setattr(evaluation, "load", watched)
    questions = read_questions()[:2]
    told: list[tuple[str, str]] = []
    found = evaluate(BOTH, texts=TEXTS, questions=questions, max_new_tokens=3, progress=lambda *a: told.append(a))
    base, tuned = found.models
    assert base.perplexities["base"].nats < tuned.perplexities["base"].nats
    assert base.perplexities["tuned"].nats > tuned.perplexities["tuned"].nats
    assert len(base.answers) == 2 and base.bytes == pytest.approx(4.0e6, rel=0.01)
    header, first, second = found.scores()
    assert header[0] == "model" and header[1:3] == ("base, per token", "base, per byte") and header[-1] == "questions"
    assert (first[0], second[0]) == tuple(BOTH) and first[-1].endswith("of 2")
    assert float(first[1]) == pytest.approx(base.perplexities["base"].per_token, abs=1e-4)
    assert found.as_dict()["models"][0]["asked"] == 2 and told[0] == (BOTH[0], "loading")


def test_nothing_to_judge_by() -> None:
    with pytest.raises(ZambaCompatError, match="nothing to judge by"):
        evaluate(BOTH)


@pytest.mark.slow
def test_two_processes_print_the_same_table(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXTS["base"])
    words = ["evaluate", BOTH[0], "--text", str(tmp_path / "text.txt"), "--window", "128", "--questions", "--json"]
    words += ["--max-new-tokens", "3"]
    # Without --multi_gpu the launcher starts one process on a machine without GPUs.
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines=1", "--num_processes=2"]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(tmp_path)}
    # Which process works on what, written down by a sitecustomize: both must.
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    printed = []
    for command in (["-m", "zamba_compat"], ["-m", "zamba_compat", "run", "--", *launch, "-m", "zamba_compat"]):
        done = subprocess.run([sys.executable, *command, *words], capture_output=True, text=True, cwd=ROOT, env=env)
        assert done.returncode == 0, done.stderr[-2000:]
        (model,) = json.loads(done.stdout)["models"]
        printed.append((model["perplexities"], model["answers"], model["correct"]))
    assert printed[0] == printed[1]
    assert sorted(path.name for path in tmp_path.glob("rank*")) == ["rank0of1", "rank0of2", "rank1of2"]
