"""generate, chat and evaluate as commands."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from zamba_compat.cli import inference
from zamba_compat.cli.main import main
from zamba_compat.inference.loading import LOADS

ROOT = Path(__file__).parents[3]
TINY = ROOT / "tests" / "fixtures" / "tiny" / "base"
PROMPT = "import os\nimport "


def test_choices_are_those_of_the_function() -> None:
    assert inference.LOADS == LOADS


def test_generate(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prompt").write_text("\ufeff" + PROMPT)  # as some editors begin a file
    monkeypatch.setattr(sys, "stdin", io.StringIO(PROMPT))
    texts = []
    for words in ([PROMPT], ["--prompt-file", str(tmp_path / "prompt")], []):
        assert main(["generate", str(TINY), *words, "--max-new-tokens", "6", "-q"]) == 0
        texts.append(capsys.readouterr().out)
    assert len(set(texts)) == 1 and texts[0].strip()
    assert main(["generate", str(TINY), PROMPT, "--max-new-tokens", "6", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["text"] + "\n" == texts[0] and found["new_tokens"] == 6
    assert main(["generate", str(TINY), PROMPT, "--max-new-tokens", "6"]) == 0
    assert re.search(r"tokens/s; peak memory [0-9.]+ GB", capsys.readouterr().err)


def test_generate_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        ([str(TINY), "--prompt-file", str(tmp_path / "b")], "cannot be read"),
        ([str(tmp_path / "absent"), "a"], "no such directory"),
    ):
        assert main(["generate", *words]) == 3
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_standard_input_that_is_no_text(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(TINY, tmp_path / "a")
    (tmp_path / "a" / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[-1].content }}")
    for errors in ("strict", "surrogateescape"):  # in a UTF-8 locale, and in that of C
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), "utf-8", errors))
        assert main([command, str(tmp_path / "a")]) == 3
        err = capsys.readouterr().err
        assert "standard input: " in err and "Give UTF-8 text" in err


def test_chat(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n/reset\nno\nimport \n"))
    assert main(["chat", str(TINY)]) == 3
    assert "no chat template" in capsys.readouterr().err
    shutil.copytree(TINY, tmp_path / "a")
    refusing = "{% if messages[-1].content == 'no' %}{{ raise_exception('never') }}{% endif %}"
    (tmp_path / "a" / "chat_template.jinja").write_text(refusing + "{{ bos_token }}{{ messages[-1].content }}")
    assert main(["chat", str(tmp_path / "a"), "--max-new-tokens", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["messages"][0]["content"] == "import" and len(found["answers"]) == 2
    (refused,) = found["refused"]
    assert refused["content"] == "no" and "refuses: never" in refused["error"]


def test_a_batch_is_not_gone_on_with_by_another_model_of_the_same_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, prompts, answers = tmp_path / "model", tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    shutil.copytree(TINY, model)
    prompts.write_text('{"prompt": "def "}\n')
    words = ["batch", str(model), str(prompts), str(answers), "--max-new-tokens", "2"]
    assert main(words) == 0 and main(words) == 0
    before = answers.read_bytes()
    shutil.copy(TINY.parent / "tuned" / "model.safetensors", model)
    capsys.readouterr()
    assert main(words) != 0
    assert "model_files changed since" in capsys.readouterr().err
    assert answers.read_bytes() == before
    assert main([*words, "--overwrite"]) == 0
