"""What the user may not read or write is an error of status 3, never a fault of this package."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from zamba_compat.cli.main import main

TINY = Path(__file__).parents[2] / "fixtures" / "tiny" / "base"
pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX permissions")
NOBODY = 65534


@contextmanager
def another_user() -> Iterator[None]:
    """As a user whom permissions bind; whoever is not root is one already."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    """Another user may not be able to read what would be imported later."""
    for words in (["generate", str(TINY), "hi", "--max-new-tokens", "1"], ["evaluate", str(TINY), "--text", __file__]):
        assert main([*words, "-q"]) == 0


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that other users can enter, as pytest's own is none; with a checkpoint."""
    made = Path(tempfile.mkdtemp())
    made.chmod(0o777)
    shutil.copytree(TINY, made / "m")
    yield made
    for path in made.rglob("*"):
        path.chmod(0o755)
    shutil.rmtree(made)


READING = [
    ["inspect", "m"],
    ["verify", "m"],
    ["convert-checkpoint", "m", "out"],
    ["quantize", "m", "out"],
    ["generate", "m", "hi"],
    ["batch", "m", "in.jsonl", "out.jsonl"],
    ["evaluate", "m", "--questions"],
]


@pytest.mark.parametrize("mode", [0o000, 0o111, 0o444])
@pytest.mark.parametrize("words", READING, ids=lambda words: words[0])
def test_a_directory(
    words: list[str], mode: int, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "m" / "zamba_compat_manifest.json").write_text("{}")
    monkeypatch.chdir(place)
    (place / "in.jsonl").write_text('{"prompt": "hi"}\n')
    (place / "in.jsonl").chmod(0o644)
    (place / "m").chmod(mode)
    with another_user():
        status = main([*words, "--max-new-tokens", "1"] if words[0] in ("generate", "batch") else words)
    out, err = capsys.readouterr()
    assert "Traceback" not in err and "fault in zamba_compat" not in err
    if status == 0:
        assert mode == 0o111, err  # its files can be read, though not be listed
    elif status == 1:  # listed among the faults
        assert words[0] in ("inspect", "verify") and "ermission denied" in out
    else:
        assert status == 3 and "ermission denied" in err and err.count("\n") == 1, err


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("words", [READING[0], READING[2], READING[4]], ids=lambda words: words[0])
def test_a_file(
    words: list[str], file: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    (place / "m" / file).chmod(0)
    with another_user():
        status = main(words)
    out, err = capsys.readouterr()
    assert status == (1 if words[0] == "inspect" else 3), err
    said = out if words[0] == "inspect" else err
    assert "ermission denied" in said and file in said and "fault in zamba_compat" not in err


def test_other_files(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    for name in ("a.yaml", "in.jsonl", "prompt.txt"):
        (place / name).write_text("{}")
        (place / name).chmod(0)
    (place / "closed").mkdir(mode=0o700)
    for words in (
        ["merge", "a.yaml", "out"],
        ["merge", "closed/a.yaml", "out"],
        ["batch", "m", "in.jsonl", "out"],
        ["batch", "m", "closed/in.jsonl", "out"],
        ["batch", "m", "in.jsonl", "closed/out"],
        ["generate", "m", "--prompt-file", "prompt.txt"],
        ["generate", "closed/m", "hi"],
        ["inspect", "closed/m"],
        ["evaluate", "m", "--text", "prompt.txt"],
        ["convert-checkpoint", "m", "closed/out"],
        ["convert-checkpoint", "m", "closed/new/out"],
        ["convert-checkpoint", "m", "closed/new/out", "--dry-run"],
    ):
        with another_user():
            status = main(words)
        err = capsys.readouterr().err
        assert status == 3 and "ermission denied" in err and err.count("\n") == 1, (words, err)
