"""--explain and --plot show what every layer gets; --evaluate says what came of it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.merges import curve, parents, slerp_of, write
from zamba_compat.cli.main import main, parser
from zamba_compat.operations.merge import MergeOptions, merge
from zamba_compat.operations.merge_chart import draw, layer_table

TINY = Path(__file__).parents[2] / "fixtures" / "tiny"
ATTENTION = [0.1, 0.5, 0.9]
T = [{"filter": "self_attn", "value": ATTENTION}, {"filter": "mamba.", "value": 0.75}]


def rows_of(lines: list[str]) -> dict[str, dict[str, str]]:
    table = [line.split() for line in lines if line]
    header = next(row for row in table if row[0] == "layer")
    return {row[0]: dict(zip(header, row, strict=True)) for row in table if len(row) == len(header)}


def test_a_row_for_each_layer(tmp_path: Path) -> None:
    """Of the 7B pattern: block 0 at layers 2, 5 and 9 of 11, which have one value."""
    config, base, other = parents("7B")
    report = merge(slerp_of(*write(tmp_path, config, base, other), 11, T), tmp_path / "out", MergeOptions(dry_run=True))
    rows = rows_of(layer_table(report.groups))
    mean = sum(curve(ATTENTION, layer, 11) for layer in (2, 5, 9)) / 3
    assert rows["2"]["attention"] == rows["5"]["attention"] == rows["9"]["attention"] == f"{mean:.3g}*"
    assert rows["3"]["attention"] == f"{sum(curve(ATTENTION, layer, 11) for layer in (3, 7)) / 2:.3g}*"
    assert rows["0-1"]["mamba"] == "0.75" and rows["0-1"]["attention"] == "-"
    assert rows["outside"]["embedding"] == "base"


@pytest.mark.parametrize(
    ("method", "parameters", "cell"),
    [("karcher", {}, "10/1e-05"), ("ram", {"epsilon": 0.5}, "0.5"), ("arcee_fusion", {}, "merged"),
     ("ties", {"weight": 0.25}, "0.25/0.25"), ("nearswap", {"t": 0.1}, "0.1")],
)  # fmt: skip
def test_methods_without_weights_too(method: str, parameters: dict[str, Any], cell: str, tmp_path: Path) -> None:
    config, base, other = parents()
    paths = write(tmp_path, config, base, other)
    models = [{"model": str(path)} for path in paths]
    if method == "ties":
        write(tmp_path / "more", config, base, other)
        models.append({"model": str(tmp_path / "more" / "other")})
    words = {"merge_method": method, "base_model": str(paths[0]), "models": models, "parameters": parameters}
    report = merge(words, tmp_path / "out", MergeOptions(dry_run=True))
    assert rows_of(layer_table(report.groups))["outside"]["embedding"] == cell


def test_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    config, base, other = parents("7B")
    first, second = write(tmp_path, config, base, other)
    report = merge(slerp_of(first, second, 11, T), tmp_path / "out", MergeOptions(dry_run=True))
    panels = draw(report, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG") and list(panels) == [str(second)]
    assert panels[str(second)]["mamba.in_proj", 0] == 0.75
    assert ("model.embed_tokens", -1) not in panels[str(second)]


def test_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The perplexities are evaluate's; a component that nothing is said of lies nowhere from the base."""
    text = tmp_path / "text.txt"
    text.write_text((TINY / "text_base.txt").read_text(encoding="utf-8")[:2000], encoding="utf-8")
    models = [str(TINY / "base"), str(TINY / "tuned")]
    config = tmp_path / "merge.yml"
    config.write_text(yaml.safe_dump(slerp_of(*map(Path, models), 9, [{"filter": "self_attn", "value": 0.25}])))
    out = str(tmp_path / "out")
    assert main(["merge", str(config), out, "--evaluate", str(text), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["evaluation"]
    costs = {one["model"]: one["perplexities"]["text.txt"]["nats"] for one in found["perplexities"]}
    assert list(costs) == [*models, out] and costs[out] < costs[models[1]]
    assert main(["evaluate", *models, out, "--text", str(text), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)["models"]
    assert [one["perplexities"]["text.txt"]["nats"] for one in again] == list(costs.values())
    assert found["distances"]["mamba"][models[0]] == 0 < found["distances"]["mamba"][models[1]]
    assert 0 < found["distances"]["attention"][models[0]] < found["distances"]["attention"][models[1]]
    assert main(["merge", str(config), out, "--overwrite", "--evaluate", str(text)]) == 0
    said = capsys.readouterr().out
    assert "distance of the result from" in said and f"zamba-compat inspect {models[1]} {out} --tensors" in said
    commands = [shlex.split(line)[1:] for line in said.splitlines() if line.strip().startswith("zamba-compat ")]
    assert [words[0] for words in commands] == ["inspect", "inspect", "evaluate", "generate"]
    for words in commands:
        parser().parse_args(words)
    assert main([*commands[-1], "--max-new-tokens", "1"]) == 0
    assert main(["merge", str(config), out, "--dry-run", "--evaluate", str(text)]) == 3
