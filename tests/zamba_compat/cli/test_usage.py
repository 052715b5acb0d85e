"""Wrong usage: status 2, one line, and where the help is; JSON where it was asked for; help with examples."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from zamba_compat.cli import main as module
from zamba_compat.cli.main import COMMANDS, main

TINY = str(Path(__file__).parents[2] / "fixtures" / "tiny" / "base")
WRONG = [
    (["generate", "x", "y", "--max-new-tokens", "0"], "--max-new-tokens is 0, not 1 or more."),
    (["generate", "x", "y", "--temperature", "-1"], "--temperature is -1.0, not 0 or more."),
    (["generate", "x", "y", "--top-p", "0.5"], "--top-p"),
    (["generate", "x", "y", "--min-p", "0.5"], "--min-p"),
    (["generate", "x", "y", "--stop", ""], "--stop"),
    (["generate", "x", "y", "--seed", str(2**70)], "more than 64 bits"),
    (["generate", "x", "y", "--prompt-file", "z"], "two prompts"),
    (["chat", "x", "--top-k", "-1"], "--top-k is -1, not 0 or more."),
    (["batch", "x", "y", "z", "--batch-size", "0"], "--batch-size is 0, not 1 or more."),
    (["evaluate", "x", "--questions", "--ablate", "foo"], "'foo' is no ablation. Use one of no-rope, rank-N, long"),
    (["evaluate", "x", "--questions", "--max-new-tokens", "0"], "--max-new-tokens is 0, not 1 or more."),
    (["evaluate", "x", "--text", "y", "--window", "0"], "--window is 0, not 1 or more."),
    (["evaluate", "x", "--text", "y", "--window", "8", "--stride", "9"], "--stride is 9, not from 1 to the window, 8."),
    (["evaluate", "x"], "nothing to judge by"),
    (["convert-checkpoint", "x", "y", "--max-shard-size", "1MiBB"], "'1MiBB' is no size"),
    (["merge", "x", "y", "--max-shard-size", "1MiBB"], "'1MiBB' is no size"),
    (["quantize", "x", "y", "--method", "nf5"], "argument --method: invalid choice: 'nf5'"),
    (["run"], "No program is named. Write: zamba-compat run -- PROGRAM ARGS"),
    (["run", "--", "-m"], "No module is named after -m."),
    (["inspect"], "the following arguments are required: A"),
    (["verify", "x", "y"], "unrecognized arguments: y"),
]


@pytest.mark.parametrize(("words", "said"), WRONG)
def test_wrong_usage_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and said in err
    assert err.startswith(f"zamba-compat {words[0]}: ") and err.endswith(f"; see zamba-compat {words[0]} --help\n")


@pytest.mark.parametrize("words", [[], ["xyzzy"], ["--nonsense"]])
def test_no_command_at_all(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    err = capsys.readouterr().err
    assert err.startswith("zamba-compat: ") and err.count("\n") == 1 and err.endswith("; see zamba-compat --help\n")


JSON_ERRORS = [
    (["inspect", "no/such", "--json"], 3, "no/such"),
    (["verify", "no-such", "--json"], 3, "no-such"),
    (["convert-checkpoint", "no-such", "out", "--json"], 3, "no-such"),
    (["merge", "no-such.yaml", "out", "--json"], 3, "no-such.yaml"),
    (["generate", "no-such", "hi", "--json"], 3, "no-such"),
    (["batch", "no-such", "no-such.jsonl", "out", "--json"], 3, "no-such.jsonl"),
    (["evaluate", "no-such", "--json"], 2, None),
    (["generate", "--json"], 2, None),
    (["xyzzy", "--json"], 2, None),
]


@pytest.mark.parametrize(("words", "status", "where"), JSON_ERRORS)
def test_an_error_is_json_where_json_was_asked_for(
    words: list[str], status: int, where: str | None, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(words) == status
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert set(found) == {"error", "status"} and found["status"] == status
    assert set(found["error"]) == {"what", "where", "remedy"}
    assert found["error"]["where"] == where and found["error"]["what"].endswith(".") and found["error"]["remedy"]
    assert err.count("\n") == 1 and found["error"]["what"].rstrip(".") in err  # a person reads it too


@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyError("x"), 4), (MemoryError(), 3), (PermissionError(13, "Permission denied", "/a"), 3),
     (KeyboardInterrupt(), 130), (SystemExit(143), 143)],
)  # fmt: skip
def test_any_end_is_json(
    error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr("zamba_compat.operations.verify.verify", fail)
    assert main(["verify", "x", "--json"]) == status
    found = json.loads(capsys.readouterr().out)
    assert found["status"] == status and found["error"]["what"] and found["error"]["remedy"]


def test_the_json_of_a_program_is_the_program_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--", "no-such-program", "--json"]) == 3
    assert not capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    out = capsys.readouterr().out
    assert ended.value.code == 0
    examples = re.findall(r"^  (zamba-compat .*)$", out.split("examples:\n")[1], re.MULTILINE)
    assert len(examples) >= 2
    for line in examples:
        words = shlex.split(line.split(" < ")[0])
        assert words[1] == name
        module.parser().parse_args(words[1:])  # raises where it is wrong


def test_a_description_is_filled(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(SystemExit):
        main(["convert-checkpoint", "--help"])
    said = capsys.readouterr().out
    (first,) = re.findall(r"^Convert a checkpoint.*(?:\n.+)*", said, re.MULTILINE)
    assert "\n" in first and max(map(len, first.splitlines())) < 62


@pytest.mark.parametrize(("short", "long"), [("bf16", "bfloat16"), ("fp16", "float16"), ("fp32", "float32")])
def test_a_dtype_has_the_same_names_everywhere(short: str, long: str) -> None:
    parse = module.parser().parse_args
    for word in (short, long):
        assert parse(["generate", "x", "y", "--load", word]).load == long
        assert parse(["evaluate", "x", "--load", word]).load == long
        for command in ("convert-checkpoint", "merge", "quantize"):
            found = parse([command, "x", "y", "--dtype", word, "--compute-dtype", word])
            assert (found.dtype, found.compute_dtype) == (long, long)


def completions(line: str, tmp_path: Path) -> list[str]:
    words = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n"}
    words |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "found")}
    code = "import sys; from zamba_compat.cli.main import main; sys.exit(main(['x']))"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **words}, check=True)
    return [word.strip() for word in (tmp_path / "found").read_text().split("\n")]


def test_shells_complete(tmp_path: Path) -> None:
    pytest.importorskip("argcomplete")
    assert set(completions("zamba-compat ", tmp_path)) >= set(COMMANDS)
    assert completions("zamba-compat convert-checkpoint a b --layo", tmp_path) == ["--layout"]
    assert "zyphra-native" in completions("zamba-compat convert-checkpoint a b --layout zy", tmp_path)


def test_without_argcomplete_nothing_is_completed_and_nothing_fails() -> None:
    code = (
        "import sys; sys.modules['argcomplete'] = None; from zamba_compat.cli.main import main; sys.exit(main(['x']))"
    )
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "_ARGCOMPLETE": "1"}, capture_output=True)
    assert done.returncode == 2 and b"Traceback" not in done.stderr
