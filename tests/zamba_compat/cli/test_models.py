"""What generate, chat, batch and evaluate say of models that they cannot use; hub ids."""

from __future__ import annotations

import json
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from zamba_compat.cli.main import main

TINY = Path(__file__).parents[2] / "fixtures" / "tiny" / "base"
HUB_ID, COMMIT = "someone/zamba2-tiny", "0" * 40


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text('{"prompt": "hi"}\n')
    return Path(shutil.copytree(TINY, tmp_path / "m"))


def commands(name: str) -> list[list[str]]:
    return [
        ["generate", name, "hi", "--max-new-tokens", "2"],
        ["chat", name],
        ["batch", name, "in.jsonl", "out.jsonl", "--max-new-tokens", "2"],
        ["evaluate", name, "--questions", "--max-new-tokens", "1"],
    ]


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("num_mem_blocks", 0, "num_mem_blocks is 0, not an integer from 1 to 10000."),
        ("hidden_size", "128", "hidden_size is '128', not a positive integer."),
        ("num_hidden_layers", 5, "layers_block_type has 9 entries, num_hidden_layers is 5."),
        ("mamba_ngroups", -1, "mamba_ngroups is -1, not a positive integer."),
    ],
)
def test_a_config_that_inspect_calls_broken(
    key: str, value: object, says: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**words, key: value}))
    assert main(["inspect", "m", "--json"]) == 1
    (fault,) = json.loads(capsys.readouterr().out)["a"]["faults"]  # told once
    assert says in fault
    for command in commands("m"):
        assert main(command) == 3
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and says in err and "Correct the config." in err


def test_a_config_that_transformers_refuses(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**words, "rms_norm_eps": "small"}))
    assert main(commands("m")[0]) == 3
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "rms_norm_eps" in err and "No model can be loaded from there" in err


def test_a_file_is_no_directory(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in commands("m/model.safetensors"):
        assert main(command) == 3
        err = capsys.readouterr().err
        assert "m/model.safetensors: It is a file, and a model is loaded from a directory. Give m." in err


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Whatever asks for an address gets none, and is listed."""
    asked: list[Any] = []

    def refuse(*args: Any, **kwargs: Any) -> Any:
        asked.append(args)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return asked


def everywhere(name: str) -> list[list[str]]:
    Path("merge.yaml").write_text(f"merge_method: linear\nmodels: [{{model: {name}, parameters: {{weight: 1}}}}]\n")
    others = [
        ["inspect", name],
        ["convert-checkpoint", name, "c"],
        ["quantize", name, "q"],
        ["merge", "merge.yaml", "x"],
    ]
    return [*commands(name), *others]


def test_a_hub_id_that_is_not_in_the_cache(
    model: Path, no_network: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers  # noqa: F401

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(model.parent / "cache"))
    for command in everywhere("someone/" + "x" * 90):
        start = time.monotonic()
        assert main(command) == 3
        assert time.monotonic() - start < 2 and not no_network
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and err.endswith(f"download it first: hf download someone/{'x' * 90}\n"), err
        assert "the local hub cache holds no such model." in err and "..." not in err


def test_a_hub_id_in_the_cache_needs_no_network(
    model: Path, no_network: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = model.parent / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    folder = cache / "models--someone--zamba2-tiny"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (model / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[-1].content }}")
    shutil.copytree(model, folder / "snapshots" / COMMIT)
    monkeypatch.setattr("sys.stdin", None)
    for command in everywhere(HUB_ID):
        status = main(command)
        assert not no_network
        err = capsys.readouterr().err
        assert status == 0 or (command[0] == "chat" and "It is closed" in err), (command, err)


def test_weights_that_are_no_numbers(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = load_file(model / "model.safetensors")
    state["model.layers.4.mamba_decoder.mamba.D"][0] = torch.nan
    save_file(state, model / "model.safetensors", {"format": "pt"})
    (model / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[-1].content }}")
    Path("text").write_text("some words of a text")
    for command in (commands("m")[0], commands("m")[2], ["evaluate", "m", "--text", "text"], commands("m")[3],
                    ["generate", "m", "hi", "--temperature", "1"]):  # fmt: skip
        assert main(command) == 3, command
        err = capsys.readouterr().err
        assert "m: It computes NaN: " in err and "zamba-compat inspect m --values" in err and err.count("\n") == 1


def test_only_what_is_asked_is_told(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    Path("text").write_text("some words of a text")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main(["evaluate", "m", "--text", "text"]) == 0
    err = capsys.readouterr().err
    assert "perplexity of text" in err and "questions" not in err


def test_prompts_that_are_none(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line, said in (
        ('{"prompt": ""}', 'Line 1 has an empty "prompt".'),
        ('{"prompt": 3}', 'Line 1 has a "prompt" that is no text.'),
        ('{"prompt": "a", "messages": []}', 'Line 1 has both "prompt" and "messages".'),
        ('{"text": "a"}', 'Line 1 has neither "prompt" nor "messages".'),
    ):
        Path("in.jsonl").write_text(line + "\n")
        assert main(commands("m")[2]) == 3
        assert said in capsys.readouterr().err


def test_stop_and_min_p(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "m", "import os\nimport ", "--max-new-tokens", "40"]
    assert main([*words, "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)["text"]
    stop = whole[7:9]
    assert main([*words, "--stop", stop, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["text"] == whole[: whole.index(stop)] and found["finish_reason"] == "stop"
    assert found["new_tokens"] < 40
    assert main([*words, "--stop", stop, "-q"]) == 0
    assert capsys.readouterr().out == found["text"] + "\n"  # as it came
    assert main([*words, "--stop", "never in it \0", "-q"]) == 0
    assert capsys.readouterr().out == whole + "\n"
    assert main([*words, "--temperature", "5", "--min-p", "1", "-q"]) == 0  # the likeliest token alone
    assert capsys.readouterr().out == whole + "\n"


def test_a_merge_says_in_words_where_it_was_not_spherical(
    model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copytree(model, "other")
    state = load_file("other/model.safetensors")
    name = "model.layers.0.mamba.in_proj.weight"
    state[name][:2] = 0
    save_file(state, "other/model.safetensors", {"format": "pt"})
    Path("slerp.yaml").write_text(
        "merge_method: {}\nbase_model: m\nslices: [{{sources: [{{model: m, layer_range: [0, 9]}}, "
        "{{model: other, layer_range: [0, 9]}}]}}]\nparameters: {{t: 0.5}}\n".format("slerp_rowwise")
    )
    assert main(["merge", "slerp.yaml", "out"]) == 0
    out = capsys.readouterr().out
    assert f"2 vectors, in 1 tensor ({name} first), have no length in one of the models, and so no direction" in out
    assert (
        "have nearly the same direction in both models, or opposite ones: combined linearly, not on the sphere" in out
    )


def test_a_large_file_is_no_configuration(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("big.yaml").write_bytes(bytes(4_000_000))
    assert main(["merge", "big.yaml", "out"]) == 3
    assert "It has more than the 1,048,576 bytes that a configuration may have." in capsys.readouterr().err


def test_the_parents_of_a_destination_are_made(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert-checkpoint", "m", "new/made/dst"]) == 0
    assert (Path("new") / "made" / "dst" / "model.safetensors").exists()
    assert main(["convert-checkpoint", "m", "other/dst", "--dry-run"]) == 0 and not Path("other").exists()
