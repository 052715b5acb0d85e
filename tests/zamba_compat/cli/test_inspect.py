"""The command: its arguments reach `inspect`, its tables are readable, its exit status says if there are faults."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import zamba_compat.checkpoint.layouts.components
from support import synthetic
from zamba_compat.cli import inspect as command
from zamba_compat.cli.main import main
from zamba_compat.operations.inspect import inspect

TINY = Path(__file__).parents[2] / "fixtures" / "tiny"
BASE, TUNED = str(TINY / "base"), str(TINY / "tuned")
CONFIG = synthetic.make_config("7B", hidden_size=16, n_mamba_heads=4, vocab_size=8, adapter_rank=2)
STATE = synthetic.make_state(CONFIG)


@pytest.fixture
def divergent(tmp_path: Path) -> str:
    return str(synthetic.write_checkpoint(tmp_path / "div", synthetic.to_divergent(STATE, CONFIG), CONFIG))


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    out, err = capsys.readouterr()
    assert not err  # no progress where standard error is no terminal
    return list(out.splitlines())


def row(found: list[str], first: str) -> list[str]:
    """The cells of the first line that starts so."""
    (line, *_) = [line for line in found if line.startswith(first)]
    return line.removeprefix(first).split()


def test_choices_are_those_of_the_library() -> None:
    assert command.COMPONENTS == zamba_compat.checkpoint.layouts.components.COMPONENTS


def test_every_option_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    found = inspect(BASE)

    def spy(a: str, b: str | None, **options: Any) -> Any:
        seen.append((a, b, options))
        return found

    monkeypatch.setattr("zamba_compat.operations.inspect.inspect", spy)
    words = "--component mamba norms --component linear --values --allow-pickle -q"
    assert main(["inspect", "x", "y", *words.split()]) == 0
    assert main(["inspect", "x", "-q"]) == 0
    first, second = seen
    assert first == (
        "x",
        "y",
        {"components": ("mamba", "norms", "linear"), "values": True, "allow_pickle": True, "progress": None},
    )
    options = {"components": command.COMPONENTS, "values": False, "allow_pickle": False, "progress": None}
    assert second == ("x", None, options)


def test_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", BASE]) == 0
    found = lines(capsys)
    assert row(found, "layout") == ["hub"] and row(found, "keys") == ["117"]
    assert row(found, "parameters") == ["2,000,620"] and row(found, "dtypes") == ["BF16", "117"]
    assert row(found, "position 4") == ["layer", "7,", "block", "0,", "canonical", "layer", "1"]
    assert row(found, "block 1") == ["401,792", "parameters;", "stored", "at", "3;", "adapters", "1", "3", "5"]
    assert row(found, "linear") == ["6", "98,304", "196.61", "KB"]
    assert row(found, "missing") == row(found, "extra") == ["none"]
    assert found[-1] == "no faults found" and len({len(line) for line in found}) > 3


def test_two_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", BASE, TUNED]) == 0
    found = lines(capsys)
    assert row(found, "checkpoint") == [BASE, TUNED] and row(found, "layout") == ["hub", "hub"]
    at = found.index("distance of B from A, relative to A")
    comparison = inspect(BASE, TUNED).comparison
    assert comparison is not None
    for name, one in comparison.components.items():
        assert one.distance is not None
        assert row(found[at:], name) == [str(one.tensors), str(one.equal), f"{one.distance:.2e}", one.largest]
    assert row(found[at:], "mamba.D ")[0] == "9"
    assert main(["inspect", BASE, TUNED, "--tensors", "--component", "linear"]) == 0
    found = lines(capsys)
    pairs = [pair for pair in comparison.tensors if pair.component == "linear"]
    assert len(pairs) == 6 and all(row(found, pair.name) == [f"{pair.distance:.2e}"] for pair in pairs)
    assert not any("mamba" in line for line in found if not line.startswith("model "))


def test_copies_that_differ(divergent: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", divergent]) == 1
    found = lines(capsys)
    assert row(found, "layout") == ["divergent"] and row(found, "copies")[:2] == ["26", "tensors"]
    at = next(i for i, line in enumerate(found) if line.startswith("copies that differ"))
    assert found[at + 1].split() == ["2", "3", "5", "7", "9"]
    cells = row(found[at:], "self_attn.q_proj")
    assert cells[:2] == ["0", "0"] and all(0.01 < float(cell) < 0.03 for cell in cells[2:])
    assert found[-1].startswith("fault: ") and "--resolve" in found[-1]


def test_a_broken_one(divergent: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {name: tensor for name, tensor in STATE.items() if name != "model.layers.0.mamba.D"}
    broken = synthetic.write_checkpoint(tmp_path / "broken", state | {"odd\x1b[31m": torch.zeros(2)}, CONFIG)
    assert main(["inspect", BASE, str(broken)]) == 1
    found = lines(capsys)
    assert any(line.startswith("fault in B: ") for line in found) and "no faults found" not in found
    assert "model.layers.0.mamba.D" in " ".join(row(found, "missing"))
    assert not any("\x1b" in line for line in found) and any("odd\\x1b[31m" in line for line in found)
    (broken / "config.json").unlink()
    assert main(["inspect", str(broken)]) == 1
    found = lines(capsys)
    assert all(row(found, what) == ["unknown"] for what in ("layout", "model", "copies", "missing", "extra"))
    assert row(found, "mamba")[0] == "87"
    assert main(["inspect", str(tmp_path / "absent")]) == 3
    assert "does not exist" in capsys.readouterr().err


def test_json_and_quiet(divergent: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", divergent, BASE, "--json"]) == 1
    report = json.loads("\n".join(lines(capsys)))
    assert report["ok"] is False and report["a"]["layout"] == "divergent" and report["b"]["faults"] == []
    assert report == json.loads(json.dumps(inspect(divergent, BASE).as_dict()))
    assert main(["inspect", divergent, "-q"]) == 1
    assert capsys.readouterr() == ("", "")


def test_plot(divergent: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert main(["inspect", divergent, "-q", "--plot", str(tmp_path / "copies.png")]) == 1
    assert main(["inspect", BASE, TUNED, "-q", "--plot", str(tmp_path / "map.svg")]) == 0
    assert (tmp_path / "copies.png").stat().st_size > 5000 and b"<svg" in (tmp_path / "map.svg").read_bytes()
    assert main(["inspect", BASE, "-q", "--plot", str(tmp_path / "none.png")]) == 3
    assert "nothing to draw" in capsys.readouterr().err


def test_plot_without_matplotlib(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["inspect", "no such directory", "--plot", "map.png"]) == 3  # told before anything is read
    assert "zamba_compat[plot]" in capsys.readouterr().err


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main(["inspect", BASE, TUNED]) == 0
    err = capsys.readouterr().err
    assert "comparing" in err and "B/s" in err


def test_help_imports_no_heavy_module() -> None:
    code = (
        "import sys, zamba_compat.cli.main as m\ntry: m.main(['inspect', '--help'])\n"
        "except SystemExit: pass\n"
        "print([n for n in ('torch', 'tqdm', 'safetensors', 'transformers', 'matplotlib') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]" and "--component" in done.stdout
