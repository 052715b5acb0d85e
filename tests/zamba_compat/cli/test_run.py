"""run: the program's own argv, streams and exit status, with the adapters armed in it and in its children."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
TINY = ROOT / "tests" / "fixtures" / "tiny" / "base"
SHOW = "import sys; print('zamba_compat' in sys.modules, sys.argv[1:], sys.stdin.read())"
SPAWN = """
import subprocess, sys
print("zamba_compat" in sys.modules)
subprocess.run([sys.executable, "-c", "import sys; print('zamba_compat' in sys.modules)"], check=True)
"""


def run(*words: str, environment: dict[str, str] | None = None, **more: Any) -> Any:
    command = [sys.executable, "-m", "zamba_compat", "run", *words]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **(environment or {})}, **more
    )


@pytest.mark.parametrize("kind", ["python", "file", "module", "script"])
def test_armed_with_its_own_arguments_and_input(kind: str, tmp_path: Path) -> None:
    (tmp_path / "shown.py").write_text(SHOW)
    (tmp_path / "shown").write_text(f"#!{sys.executable}\n{SHOW}\n")
    (tmp_path / "shown").chmod(0o755)
    words = {
        "python": ["python", "-c", SHOW],
        "file": [str(tmp_path / "shown.py")],
        "module": ["-m", "shown"],
        "script": ["shown"],
    }[kind]
    environment = {"PYTHONPATH": str(tmp_path), "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = run("--", *words, "--flag", "-q", "x y", input="in", environment=environment)
    assert (done.returncode, done.stdout) == (0, "True ['--flag', '-q', 'x y'] in\n"), done.stderr


def test_children_too(tmp_path: Path) -> None:
    (tmp_path / "spawn.py").write_text(SPAWN)
    done = run(str(tmp_path / "spawn.py"))
    assert done.stdout.split() == ["True", "True"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    bare = [sys.executable, str(tmp_path / "spawn.py")]
    assert subprocess.run(bare, capture_output=True, text=True, env=environment).stdout.split() == ["False", "False"]


def test_a_sitecustomize_that_is_hidden_runs_too(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import builtins; builtins.seen = True\n")
    code = "import sys; print('zamba_compat' in sys.modules, seen)"
    done = run("--", "python", "-c", code, environment={"PYTHONPATH": str(tmp_path)})
    assert done.stdout == "True True\n", done.stderr


@pytest.mark.parametrize(("code", "status"), [("raise SystemExit(7)", 7), ("1 / 0", 1), ("pass", 0)])
def test_exit_status(code: str, status: int, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(code)
    done = run("--", str(tmp_path / "a.py"))
    assert done.returncode == status
    assert ("ZeroDivisionError" in done.stderr) == (status == 1)
    assert "zamba-compat run:" not in done.stderr


def test_a_hidden_sitecustomize_that_fails(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("raise ImportError('broken')\n")
    code = "import sys; print('zamba_compat' in sys.modules)"
    assert run("--", "python", "-c", code, environment={"PYTHONPATH": str(tmp_path)}).stdout == "True\n"


def test_no_program(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    done = run("--", str(tmp_path / "notes.txt"))
    assert done.returncode == 3 and "cannot be run" in done.stderr and "Traceback" not in done.stderr


def test_console_script() -> None:
    done = run("--", "accelerate", "--help")
    assert done.returncode == 0 and "usage: accelerate" in done.stdout


def test_other_programs() -> None:
    done = run("--", "sh", "-c", "echo $0 $1; exit 3", "a", "b")
    assert (done.returncode, done.stdout) == (3, "a b\n")


def test_interrupted(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("import time; print('ready', flush=True); time.sleep(60)")
    command = [sys.executable, "-m", "zamba_compat", "run", str(tmp_path / "a.py")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    process.communicate()


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--", "-m", "no.such"], "no.such: There"),
     (["--", "acelerate"], "Did you mean accelerate"), (["--", "qqqqqqq"], "Install it")],
)  # fmt: skip
def test_refused(words: list[str], said: str) -> None:
    done = run(*words)
    assert done.returncode == 3 and said in done.stderr and "Traceback" not in done.stderr


TASK = """
task: local_choice
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_target: "{{{{label}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list:
  - metric: acc
"""


@pytest.mark.slow
def test_lm_eval(tmp_path: Path) -> None:
    """A task of our own; the batch's size, and so padding, changes no answer."""
    rows = [
        {"context": f"def f{i}(x):\n" + "    x += 1\n" * i, "choices": ["    return x", " ", f"class {i}:"], "label": 0}
        for i in range(11)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "task.yaml").write_text(TASK.format(data=tmp_path / "rows.jsonl"))
    offline = {"HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    found = []
    for size in (1, 3, 8):
        out = tmp_path / f"out{size}"
        done = run(
            "--", "lm_eval", "--model", "hf", "--model_args", f"pretrained={TINY},dtype=float32",
            "--tasks", "local_choice", "--include_path", str(tmp_path), "--device", "cpu",
            "--batch_size", str(size), "--output_path", str(out), "--log_samples", environment=offline,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        (samples,) = out.rglob("samples_local_choice_*.jsonl")
        lines = sorted((json.loads(line) for line in samples.read_text().splitlines()), key=lambda one: one["doc_id"])
        found.append([float(pair[0][0]) for line in lines for pair in line["resps"]])
        (results,) = out.rglob("results_*.json")
        accuracy = json.loads(results.read_text())["results"]["local_choice"]["acc,none"]
        assert accuracy == sum(max(range(3), key=found[-1][3 * i : 3 * i + 3].__getitem__) == 0 for i in range(11)) / 11
    assert len(found[0]) == 33 and len(set(found[0])) > 20
    for other in found[1:]:
        assert other == pytest.approx(found[0], abs=1e-4)
