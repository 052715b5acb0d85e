"""The divergence between two models on a text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from support import synthetic
from zamba_compat.errors import CheckpointError
from zamba_compat.layout.config import read_config
from zamba_compat.operations.calibrate import kl_divergence, read_text
from zamba_compat.operations.convert import Options, convert

TINY = Path(__file__).parents[2] / "fixtures" / "tiny"
TEXT = (TINY / "text_base.txt").read_text(encoding="utf-8")[:400]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zamba_compat.operations.calibrate.WINDOW", 40)
    monkeypatch.setattr("zamba_compat.operations.calibrate.MOST", 90)


def test_a_model_is_no_way_from_itself() -> None:
    assert kl_divergence(TINY / "base", TINY / "base", TEXT) == 0


def test_the_value() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(TINY / "base")(TEXT, return_tensors="pt", add_special_tokens=False)
    ids = ids["input_ids"][:, :90]
    logits = []
    for name in ("base", "tuned"):
        model = AutoModelForCausalLM.from_pretrained(TINY / name, torch_dtype="auto").eval()
        with torch.no_grad():
            logits.append(torch.cat([model(ids[:, n : n + 40]).logits[0] for n in (0, 40, 80)]).float())
    wanted = F.kl_div(logits[1].log_softmax(-1), logits[0].log_softmax(-1), log_target=True, reduction="batchmean")
    assert kl_divergence(TINY / "base", TINY / "tuned", TEXT) == pytest.approx(wanted.item(), rel=1e-4)


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pair merged with a factor that grows with depth, expanded: copies that differ."""
    config = read_config(TINY / "base")
    states = [synthetic.to_expanded(load_file(TINY / name / "model.safetensors"), config) for name in ("base", "tuned")]

    def merge(key: str) -> torch.Tensor:
        layer = re.search(r"layers\.(\d+)\.", key)
        factor = (int(layer[1]) if layer else 4) / 8
        return torch.lerp(states[0][key].float(), states[1][key].float(), factor).bfloat16()

    directory = tmp_path_factory.mktemp("merged") / "source"
    synthetic.write_checkpoint(directory, {key: merge(key) for key in states[0]}, config)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (directory / name).write_bytes((TINY / "base" / name).read_bytes())
    return directory


def test_convert_measures_it(merged: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text(TEXT, encoding="utf-8")
    found = {}
    for choice in ("untie", "first", "mean"):
        options = Options(resolve=choice, calibrate=str(tmp_path / "text"), dry_run=choice == "mean")
        report = convert(merged, tmp_path / choice, options)
        found[choice] = report.kl_divergence
        assert report.written == (tmp_path / choice).exists()
    assert found["untie"] == 0
    assert 1e-5 < found["mean"] < found["first"]
    assert {path.name for path in tmp_path.iterdir()} == {"text", "untie", "first"}
    assert found["first"] == pytest.approx(kl_divergence(tmp_path / "untie", tmp_path / "first", TEXT))


@pytest.mark.parametrize(
    ("content", "match"), [(None, "cannot be read"), (b"\xff\xfe", "cannot be read"), (b" ", "empty")]
)
def test_texts_that_are_none(content: bytes | None, match: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "text").write_bytes(content)
    with pytest.raises(CheckpointError, match=match):
        read_text(tmp_path / "text")
    with pytest.raises(CheckpointError, match=match):  # before anything is opened
        convert(tmp_path / "nothing", tmp_path / "made", Options(calibrate=str(tmp_path / "text")))


def test_a_checkpoint_without_tokenizer(merged: Path, tmp_path: Path) -> None:
    config = synthetic.make_config("7B")
    synthetic.write_checkpoint(tmp_path / "source", synthetic.make_state(config), config)
    (tmp_path / "text").write_text(TEXT, encoding="utf-8")
    with pytest.raises(CheckpointError, match="tokenizer"):
        convert(tmp_path / "source", tmp_path / "made", Options(calibrate=str(tmp_path / "text")))
    assert {path.name for path in tmp_path.iterdir()} == {"source", "text"}
