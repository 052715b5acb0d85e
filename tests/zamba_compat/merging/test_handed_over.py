"""What only mergekit does is handed to it, with the command; a Zamba2 whose layers move is refused by both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from support.merges import parents, slerp_of, write
from support.others import write_model
from zamba_compat.cli.main import main
from zamba_compat.errors import ConfigError
from zamba_compat.operations.merge import merge


def refusal(words: dict[str, Any], folder: Path) -> str:
    config = folder / "a merge.yml"
    config.write_text(yaml.safe_dump(words))
    with pytest.raises(ConfigError) as caught:
        merge(config, folder / "out")
    assert not (folder / "out").exists()
    return str(caught.value)


CHANGES: list[dict[str, Any]] = [
    {"merge_method": "something_newer"},
    {"tokenizer": {"source": "base", "tokens": {"<new>": {"source": "base"}}}},
    {"base_model": "base+lora"},
    {"base_model": {"model": "base", "lora": "lora"}},
    {"modules": {"text": {}, "vision": {}}, "slices": None},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: str(next(iter(change))))
def test_the_command_is_said(change: dict[str, Any], tmp_path: Path) -> None:
    words = slerp_of(tmp_path / "base", tmp_path / "other", 11, 0.5) | change
    command = f"zamba-compat run -- mergekit-yaml '{tmp_path / 'a merge.yml'}' OUT"
    assert command in refusal(words, tmp_path)


def test_a_slip_of_the_pen_is_told_first(tmp_path: Path) -> None:
    words = slerp_of(tmp_path / "base", tmp_path / "other", 11, 0.5, merge_method="dare-ties")
    assert "Was dare_ties meant?" in refusal(words, tmp_path)


def slices_of(path: Path, *ranges: tuple[int, int]) -> dict[str, Any]:
    slices = [{"sources": [{"model": str(path), "layer_range": list(found)}]} for found in ranges]
    return {"merge_method": "passthrough", "slices": slices, "base_model": str(path)}


def test_layers_that_repeat(tmp_path: Path) -> None:
    """mergekit can repeat those of a Llama; those of a Zamba2 would share other blocks."""
    first, _ = write(tmp_path, *parents("7B"))
    said = refusal(slices_of(first, (0, 8), (4, 11)), tmp_path)
    assert "Let the slices together go through layers 0 to 10" in said and "mergekit-yaml" not in said
    llama = write_model(tmp_path / "llama", "llama", 0)
    assert "zamba-compat run -- mergekit-yaml" in refusal(slices_of(llama, (0, 2), (1, 3)), tmp_path)


def test_parts_of_two_models(tmp_path: Path) -> None:
    """Every layer at its own place: what is not shared is taken of either, and a shared block has to be of one."""
    first, second = write(tmp_path, *parents("7B"))
    words = slices_of(first, (0, 4), (4, 11))
    words["slices"][1]["sources"][0]["model"] = str(second)
    assert "use shared: separate" in refusal(words, tmp_path)
    report = merge(words | {"shared": "separate"}, tmp_path / "out")
    assert report.copied == report.tensors


def test_options_of_mergekit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["--cuda"], "that mergekit alone has: zamba-compat run -- mergekit-yaml CONFIG OUT --cuda merges with it"),
        (["--lora-merge-cache", "x"], "mergekit-yaml CONFIG OUT --lora-merge-cache merges with it"),
        (["--out-shard-size", "1B"], "--max-shard-size says it here, in bytes"),
        (["--lazy-unpickle"], "that is not needed: files are never read whole here"),
    ):
        assert main(["merge", "config.yml", str(tmp_path / "out"), *words]) == 2
        err = capsys.readouterr().err
        assert words[0] in err and said in err and err.endswith("; see zamba-compat merge --help\n")
        assert err.count("\n") == 1
    with pytest.raises(SystemExit):
        main(["merge", "--help"])
    assert "--cuda" not in capsys.readouterr().out
