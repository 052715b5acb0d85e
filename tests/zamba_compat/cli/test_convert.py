"""The command: its arguments reach `convert`, its report is readable, its exit status says what happened."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import zamba_compat.checkpoint.layouts.contents
import zamba_compat.checkpoint.resolving.resolve
import zamba_compat.checkpoint.writing.report
from support import synthetic
from zamba_compat.cli import convert as command
from zamba_compat.cli.main import main

CONFIG = synthetic.make_config("7B")
STATE = synthetic.make_state(CONFIG)


@pytest.fixture
def divergent(tmp_path: Path) -> Path:
    return synthetic.write_checkpoint(tmp_path / "source", synthetic.to_divergent(STATE, CONFIG), CONFIG)


def test_choices_are_those_of_the_library() -> None:
    assert command.LAYOUTS == zamba_compat.checkpoint.layouts.contents.WRITTEN
    assert command.CHOICES == zamba_compat.checkpoint.resolving.resolve.CHOICES
    assert set(command.DTYPES) == set(zamba_compat.checkpoint.dtypes.DTYPES)
    assert command.METHODS == zamba_compat.checkpoint.writing.report.METHODS


def test_every_option_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def convert(source: str, destination: str, options: Any, *, progress: Any) -> Any:
        seen.update(source=source, destination=destination, options=options, progress=progress)
        return SimpleNamespace(as_dict=lambda: {"written": True})

    monkeypatch.setattr("zamba_compat.operations.convert.convert", convert)
    words = "--layout untied --resolve absorb --adapter-rank 9 --dtype float16 --max-shard-size 1MB --calibrate text"
    quantized = "--quantize fp4 --double-quant --compute-dtype bfloat16 --keep-shared-16bit"
    flags = "--dry-run --overwrite --allow-unknown --allow-pickle -q"
    assert main(["convert-checkpoint", "a", "b", *words.split(), *quantized.split(), *flags.split()]) == 0
    assert seen == {
        "source": "a",
        "destination": "b",
        "progress": None,
        "options": zamba_compat.checkpoint.writing.report.Options(
            *("untied", "absorb", 9, "float16", "1MB", True, True, True, True, "text"),
            *("fp4", True, "bfloat16", True),
        ),
    }
    assert len(inspect.signature(zamba_compat.checkpoint.writing.report.Options).parameters) == 21
    assert main(["convert-checkpoint", "a", "b", "--keep-unused-adapters", "-q"]) == 0
    assert seen["options"] == zamba_compat.checkpoint.writing.report.Options(keep_unused_adapters=True)
    assert main(["convert-checkpoint", "a", "b", "--format", "torch", "-q"]) == 0
    assert seen["options"] == zamba_compat.checkpoint.writing.report.Options(format="torch")
    assert main(["quantize", "a", "b", "--dtype", "bfloat16", "-q"]) == 0
    assert seen["options"] == zamba_compat.checkpoint.writing.report.Options(dtype="bfloat16", quantize="nf4")
    more = "--method w4a16 --group-size 64 --asymmetric --ignore in_proj --ignore out_proj --gptq text --act-order -q"
    assert main(["quantize", "a", "b", *more.split()]) == 0
    assert seen["options"] == zamba_compat.checkpoint.writing.report.Options(
        **{"quantize": "w4a16", "group_size": 64, "asymmetric": True, "ignore": ("in_proj", "out_proj")},
        **{"gptq": "text", "act_order": True},
    )


def test_text(divergent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert-checkpoint", str(divergent), str(tmp_path / "made"), "--resolve", "untie"]) == 0
    out, err = capsys.readouterr()
    assert not err  # no progress where standard error is no terminal
    for words in ("(divergent)", "(hub): written", "num_mem_blocks: 2 -> 5", "q_proj.weight", "untie", "warning:"):
        assert words in out
    assert (tmp_path / "made" / "model.safetensors").exists()
    assert main(["convert-checkpoint", str(divergent), str(tmp_path / "x"), "--resolve", "mean", "--dry-run"]) == 0
    assert "nothing is written" in capsys.readouterr().out
    assert not (tmp_path / "x").exists()


def test_json_and_quiet(divergent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["convert-checkpoint", str(divergent), str(tmp_path / "made"), "--resolve", "mean"]
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["source_layout"] == "divergent" and len(report["residuals"]) == 16
    assert main([*arguments, "--overwrite", "-q"]) == 0
    assert capsys.readouterr() == ("", "")


def test_row_36_the_error_is_a_table(divergent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert-checkpoint", str(divergent), str(tmp_path / "made")]) == 3
    out, err = capsys.readouterr()
    assert not out and not (tmp_path / "made").exists()
    row = next(line for line in err.splitlines() if line.startswith("self_attn.q_proj.weight"))
    assert len(row.split()) == 3 and all(0.01 < float(cell) < 0.03 for cell in row.split()[1:])
    assert "layer 2" in err and "layer 3" in err and "--resolve untie" in err


def test_interruption_is_130(divergent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("zamba_compat.operations.convert.write_shards", interrupted)
    assert main(["convert-checkpoint", str(divergent), str(tmp_path / "made"), "--resolve", "first", "-q"]) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_progress_on_a_terminal(
    divergent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main(["convert-checkpoint", str(divergent), str(tmp_path / "made"), "--resolve", "mean"]) == 0
    err = capsys.readouterr().err
    assert all(what in err for what in ("comparing", "tying", "writing", "B/s"))


def test_help_imports_no_heavy_module() -> None:
    import subprocess

    code = (
        "import sys, zamba_compat.cli.main as m\ntry: m.main(['convert-checkpoint', '--help'])\n"
        "except SystemExit: pass\n"
        "print([n for n in ('torch', 'tqdm', 'safetensors', 'transformers') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]" and "--resolve" in done.stdout
