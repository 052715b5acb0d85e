"""Standard streams, terminals and Ctrl-C."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zamba_compat.cli import inference
from zamba_compat.cli.counts import counted
from zamba_compat.cli.main import main

TINY = str(Path(__file__).parents[2] / "fixtures" / "tiny" / "base")
PROMPTS = b'{"prompt": "def ", "id": "a"}\n{"prompt": "import "}\n'
FEW = ["--max-new-tokens", "3"]


def ran(*words: str, given: bytes = PROMPTS, cwd: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "zamba_compat", *words]
    return subprocess.run(command, input=given, capture_output=True, cwd=cwd)


def test_batch_from_and_to_the_standard_streams(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_bytes(PROMPTS)
    assert main(["batch", TINY, "in.jsonl", "out.jsonl", *FEW]) == 0
    wanted = Path("out.jsonl").read_text()
    before = sorted(tmp_path.iterdir())
    capsys.readouterr()
    for source, output in (("-", "-"), ("in.jsonl", "-"), ("-", "/dev/stdout")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(PROMPTS)))
        assert main(["batch", TINY, source, output, *FEW]) == 0
        out, err = capsys.readouterr()
        assert out == wanted and "2 answers written" in err
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(PROMPTS)))
    assert main(["batch", TINY, "-", "-", *FEW, "--json"]) == 0
    out, err = capsys.readouterr()
    assert out == wanted and json.loads(err)["answered"] == 2
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"{}\n")))
    assert main(["batch", TINY, "-", "-", *FEW, "--json"]) == 3
    out, err = capsys.readouterr()
    assert not out and json.loads(err.splitlines()[0])["error"]["where"] == "standard input"
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(sys.platform == "win32", reason="there is no /dev")
def test_dev_stdout_that_is_a_file_gets_no_state_beside_it(tmp_path: Path) -> None:
    with open(tmp_path / "got", "wb") as file:
        command = [sys.executable, "-m", "zamba_compat", "batch", TINY, "/dev/stdin", "/dev/stdout", *FEW]
        done = subprocess.run(command, input=PROMPTS, stdout=file, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["index"] for line in (tmp_path / "got").read_bytes().splitlines()] == [0, 1]
    assert not Path("/dev/stdout.state.json").exists() and [p.name for p in tmp_path.iterdir()] == ["got"]


def test_generate_from_standard_input(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["generate", TINY, "import os", *FEW, "-q"]) == 0
    wanted = capsys.readouterr().out
    for words in ([], ["-"], ["--prompt-file", "-"]):
        monkeypatch.setattr(sys, "stdin", io.StringIO("import os"))
        assert main(["generate", TINY, *words, *FEW, "-q"]) == 0
        assert capsys.readouterr().out == wanted


def test_control_characters_reach_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "a\x1b[31mb\x9b2Jc\rd\x07\x00\te\né\u200d\x7f"
    inference.say(text)
    assert capsys.readouterr().out == text  # a file or a pipe gets what the model said
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    inference.say(text)
    assert capsys.readouterr().out == "a\\x1b[31mb\\x9b2Jc\\rd\\x07\\x00\te\né\u200d\\x7f"


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_control_c_in_a_batch_says_what_is_kept(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "def "}\n' * 5000)
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "zamba_compat", "batch", TINY, str(tmp_path / "in.jsonl"), str(out), *FEW]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 100
    while not (out.exists() and out.read_bytes().count(b"\n") > 2) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said, err = process.communicate(timeout=60)
    kept = out.read_bytes().count(b"\n")
    assert process.returncode == 130 and not said
    are_kept = f"{counted(kept, 'answer')} {'is' if kept == 1 else 'are'} kept"
    again = "The same command again goes on from there."
    assert err == f"zamba-compat batch: {out}: Stopped by SIGINT; {are_kept}. {again}\n"


def test_control_c_without_an_output_yet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("zamba_compat.inference.loading.load", stopped)
    (tmp_path / "in.jsonl").write_bytes(PROMPTS)
    assert main(["batch", TINY, str(tmp_path / "in.jsonl"), str(tmp_path / "out")]) == 130
    assert "0 answers are kept" in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_stream_that_cannot_be_written() -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "zamba_compat", "batch", TINY, "-", "-", *FEW]
        done = subprocess.run(command, input=PROMPTS, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 3 and b"could not be written" in done.stderr and b"Traceback" not in done.stderr


def test_the_kernels_line_of_bitsandbytes(tmp_path: Path) -> None:
    """It names a package to install that nothing here needs."""
    shutil.copytree(TINY, tmp_path / "m")
    done = ran("quantize", str(tmp_path / "m"), str(tmp_path / "q"))
    assert done.returncode == 0 and done.stderr == b""
