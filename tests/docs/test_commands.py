"""The commands of the README and of docs/: those that a small model is enough for run, the others are understood."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tomllib
import yaml

from docs import pages
from docs.pages import PRESENT, ROOT, TINY
from zamba_compat import __version__
from zamba_compat.cli.main import COMMANDS, main, parser

HUB = "it takes a hub; tests/zamba_compat/hub has one"
# A command line that is not run here -> why. Each is parsed all the same.
NOT_RUN = {
    "zamba-compat run -- mergekit-yaml CONFIG OUT": "mergekit is an extra; tests/patches/mergekit runs it",
    "zamba-compat inspect A B --plot map.png": "matplotlib is an extra; operations/test_heatmap.py draws",
    "zamba-compat inspect Zyphra/Zamba2-1.2B": HUB,
    "zamba-compat quantize Zyphra/Zamba2-1.2B@main zamba2-1.2b-nf4": HUB,
    "zamba-compat convert-checkpoint SRC DST --push OWNER/NEW": HUB,
    "zamba-compat quantize SRC DST-NF4 --push OWNER/NEW@nf4 --public": HUB,
    "zamba-compat upload DST OWNER/NEW": HUB,
}
# Programs of others, which only their extra brings.
OTHERS = {"eval", "register-python-argcomplete", "hf"}
ANSWERING = {"generate", "chat", "batch", "evaluate"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
_INLINE = re.compile(r"`((?:zamba-compat|python tools/|make )[^`]*)`")
_INDENTED = re.compile(r"^    ((?:zamba-compat|python|make) .*)$", re.MULTILINE)


def shown(page: Path) -> list[str]:
    """Every command of a page: in blocks marked sh, indented, and in running text."""
    text = pages.prose(page).replace("\\\n", " ")
    fenced = [line for block in pages.blocks(page, "sh") for line in pages.lines(block.text)]
    return fenced + _INDENTED.findall(text) + [" ".join(line.split()) for line in _INLINE.findall(text)]


def runnable(page: Path) -> list[str]:
    """The zamba-compat lines in the blocks of a page, each once, in order."""
    found = [line for block in pages.blocks(page, "sh") for line in pages.lines(block.text)]
    found = [shlex.join(words(line)) if not redirected(line) else line for line in found]
    return list(dict.fromkeys(line for line in found if line.startswith("zamba-compat ")))


def words(line: str) -> list[str]:
    return shlex.split(line, comments=True)


def redirected(line: str) -> bool:
    return any(word in ("<", ">", "|") for word in words(line))


@pytest.mark.parametrize("page", PRESENT, ids=pages.name)
def test_commands_are_understood(page: Path) -> None:
    for line in shown(page):
        first, *rest = words(line)
        if first == "zamba-compat":
            understood(rest, line)
        elif first == "make":
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
            asked = [word for word in rest if "=" not in word and re.fullmatch("[a-z-]+", word)]
            assert asked and set(asked) <= {*targets, "next-release"}, line
        elif first == "python" and rest[:1] != ["-c"]:
            script = ROOT / rest[0]
            assert script.exists(), line
            asked = [word for word in rest if word.startswith("--")]
            assert all(f'"{word}"' in source_of(script) for word in asked), line
        elif first == "pip":
            extras = {extra for found in re.findall(r"\[([\w,]+)\]", line) for extra in found.split(",")}
            assert extras <= set(PROJECT["optional-dependencies"]), line
            assert "zamba_compat-" not in line or f"zamba_compat-{__version__}-" in line
        else:
            assert first in OTHERS | {"python"}, f"nothing is known of {line!r}"


def understood(rest: list[str], line: str) -> None:
    """Whether the parser takes a command line; where only the command is named, whether there is one."""
    for sign in ("<", ">", "|"):
        rest = rest[: rest.index(sign)] if sign in rest else rest
    if "..." in rest or "COMMAND" in rest or len(rest) == 1:
        assert rest[0] in {*COMMANDS, "COMMAND"}, line
        return
    parser().parse_args(rest)


def source_of(script: Path) -> str:
    """A script, and the package beside it that is named as it is, where it has its options."""
    beside = sorted((ROOT / "tools").glob("_*/*.py"))
    return "".join(path.read_text(encoding="utf-8") for path in (script, *beside))


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that holds what the pages name."""
    for placeholder in ("CHECKPOINT", "SRC", "A", "BASE"):
        shutil.copytree(TINY / "base", tmp_path / placeholder)
    for placeholder in ("B", "TUNED", "OTHER"):
        shutil.copytree(TINY / "tuned", tmp_path / placeholder)
    shutil.copytree(TINY / "base", tmp_path / "INSTRUCT")
    (tmp_path / "INSTRUCT" / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[-1].content }}")
    divergent(tmp_path / "MERGED")
    text = (TINY / "text_base.txt").read_text(encoding="utf-8")[:2000]
    for placeholder in ("held_out.txt", "text.txt", "TEXT"):
        (tmp_path / placeholder).write_text(text, encoding="utf-8")
    (tmp_path / "prompt.txt").write_text("import ")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "import "}\n')
    (tmp_path / "merge_config.yaml").write_text(yaml.safe_dump(study(tmp_path)))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "zamba-compat").write_text(f'#!/bin/sh\nexec {sys.executable} -m zamba_compat "$@"\n')
    (tmp_path / "bin" / "zamba-compat").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def study(folder: Path) -> Any:
    """The configuration that the page about merging shows, for two small models."""
    (shown,) = pages.blocks(ROOT / "docs" / "merging.md", "yaml")
    found = yaml.safe_load(shown.text)
    assert found == yaml.safe_load((ROOT / "tests" / "fixtures" / "merges" / "study.yml").read_text())
    layers = json.loads((TINY / "base" / "config.json").read_text())["num_hidden_layers"]
    for source, model in zip(found["slices"][0]["sources"], ("BASE", "TUNED"), strict=True):
        source |= {"model": str(folder / model), "layer_range": [0, layers]}
    return found | {"base_model": str(folder / "BASE")}


def divergent(folder: Path) -> None:
    """The base model as a merge tool may leave it: a copy of a shared block per layer, one of them different."""
    from safetensors.torch import load_file, save_file

    assert main(["convert-checkpoint", str(TINY / "base"), str(folder), "--layout", "expanded", "-q"]) == 0
    (file,) = folder.glob("*.safetensors")
    state = load_file(file)
    name = [key for key in state if key.endswith("shared_transformer.self_attn.q_proj.weight")][-1]
    state[name] = state[name] * 1.25
    save_file(state, file, {"format": "pt"})


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PRESENT if runnable(page)], ids=pages.name)
def test_commands_run(page: Path, at_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As written, in order, but for published models and the length of answers."""
    if find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    for line in runnable(page):
        if line in NOT_RUN or (re.search("--method (w4a16|w8a16|fp8)", line) and not find_spec("compressed_tensors")):
            continue
        asked = pages.MODEL.sub(str(TINY / "base"), line)
        command = words(asked)[1]
        more = ["--max-new-tokens", "2"] if command in ANSWERING else []
        if "w4a16" in asked:  # 128, the default, does not divide the small model's 192 columns
            more = ["--group-size", "64"]
        if redirected(asked) or command == "run":
            before, sign, after = asked.partition(" < ") if " < " in asked else (asked, "", "")
            script = f"{before} {shlex.join(more)}{sign}{after}"
            done = subprocess.run(
                ["bash", "-c", script], capture_output=True, text=True,
                env={**os.environ, "PATH": f"{at_home / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
            assert done.returncode == 0, f"{line}\n{done.stderr[-2000:]}"
        else:
            monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
            assert main([*words(asked)[1:], *more]) == 0, line


def test_what_does_not_run_is_there() -> None:
    there = {line for page in PRESENT for line in runnable(page)}
    assert set(NOT_RUN) <= there


def test_a_session_at_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """What is shown with $ before it prints what is shown below it, ... standing for more."""
    (session,) = [block for page in PRESENT for block in pages.blocks(page, "console")]
    line, output = session.text.splitlines()
    assert main(words(line.removeprefix("$ "))[1:]) == 3
    pattern = re.escape(output).replace(re.escape("..."), ".*")
    assert re.fullmatch(pattern, capsys.readouterr().out.strip())
