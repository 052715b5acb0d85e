"""Many prompts: padding and interruptions change no answer."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from zamba_compat.errors import CheckpointError, DestinationError
from zamba_compat.inference import batching
from zamba_compat.inference.batching import answer, read_requests, run_batch
from zamba_compat.inference.generation import Sampling, generate
from zamba_compat.inference.loading import Loaded

from .conftest import TINY

SOME = Sampling(max_new_tokens=12)
PROMPTS = ["def a", "import os\nimport ", "x", "class Reader:\n    def __init__(self, path):\n", "for i in"]


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_padding_changes_no_answer(tiny: Loaded, tmp_path: Path) -> None:
    requests, _ = read_requests(write(tmp_path / "in", [{"prompt": prompt} for prompt in PROMPTS]))
    alone = [generate(tiny, prompt, SOME).text for prompt in PROMPTS]
    assert len(set(alone)) == len(alone)
    for size in (1, 2, 5):
        found = [one for at in range(0, 5, size) for one in answer(tiny, requests[at : at + size], SOME)]
        assert [one["text"] for one in found] == alone
        assert [one["prompt_tokens"] for one in found] == [len(prompt) + 1 for prompt in PROMPTS]


def test_answers_end_where_their_row_does(tiny: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests, _ = read_requests(write(tmp_path / "in", [{"prompt": prompt} for prompt in PROMPTS[:3]]))
    ids = [tiny.tokenizer(one["text"], add_special_tokens=False).input_ids for one in answer(tiny, requests, SOME)]
    end = ids[0][2]
    monkeypatch.setattr(tiny.model.generation_config, "eos_token_id", end)
    found = answer(tiny, requests, SOME)
    assert (found[0]["finish_reason"], found[0]["new_tokens"]) == ("stop", ids[0].index(end) + 1)
    for one, tokens in zip(found, ids, strict=True):
        assert one["new_tokens"] == (tokens.index(end) + 1 if end in tokens else 12)


def test_goes_on_and_keeps_order(tiny: Loaded, tmp_path: Path) -> None:
    source = write(tmp_path / "in", [{"prompt": prompt, "id": f"q{i}"} for i, prompt in enumerate(PROMPTS)])
    out, calls = tmp_path / "out", []

    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        calls.append((done, total))
        if done == 2:
            raise Stopped

    common: dict[str, Any] = {"identity": {"model": "tiny"}}
    with pytest.raises(Stopped):
        run_batch(source, out, lambda: tiny, SOME, progress=stop, **common)
    report = run_batch(source, out, lambda: tiny, SOME, batch_size=2, **common)
    assert (report.found, report.answered, report.new_tokens) == (2, 3, 36) and calls == [(1, 5), (2, 5)]
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(one["index"], one["id"]) for one in lines] == [(i, f"q{i}") for i in range(5)]
    assert [one["text"] for one in lines] == [generate(tiny, prompt, SOME).text for prompt in PROMPTS]

    def never() -> Loaded:
        raise AssertionError("nothing is left to do")

    assert run_batch(source, out, never, SOME, **common).answered == 0


def test_messages(tiny: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "in", [{"messages": [{"role": "user", "content": "import "}]}])
    late = write(tmp_path / "late", [{"prompt": "x"}, {"messages": [{"role": "user", "content": "import "}]}])
    for requests in (source, late):
        with pytest.raises(CheckpointError, match="no chat template"):
            run_batch(requests, tmp_path / "out", lambda: tiny, SOME, identity={})
        assert not list(tmp_path.glob("out*"))
    monkeypatch.setattr(tiny.tokenizer, "chat_template", "{{ bos_token }}{{ messages[0].content }}")
    run_batch(source, tmp_path / "out", lambda: tiny, SOME, identity={})
    assert json.loads((tmp_path / "out").read_text())["text"] == generate(tiny, "import ", SOME).text


def test_nothing_is_overwritten_in_vain(tiny: Loaded, tmp_path: Path) -> None:
    source = write(tmp_path / "in", [{"prompt": "x"}])
    before = source.read_bytes()
    (tmp_path / "link").symlink_to(source)
    for out in (source, tmp_path / "link"):
        with pytest.raises(DestinationError, match="is the input itself"):
            run_batch(source, out, lambda: tiny, SOME, identity={}, overwrite=True)
    assert source.read_bytes() == before
    run_batch(source, tmp_path / "out", lambda: tiny, SOME, identity={})
    before = (tmp_path / "out").read_bytes()

    def absent() -> Loaded:
        raise CheckpointError("no such model")

    with pytest.raises(CheckpointError, match="no such model"):
        run_batch(source, tmp_path / "out", absent, SOME, identity={}, overwrite=True)
    assert (tmp_path / "out").read_bytes() == before
    with pytest.raises(CheckpointError, match="no such model"):
        run_batch(source, tmp_path / "new", absent, SOME, identity={})
    assert not list(tmp_path.glob("new*"))
    for where, what in ((tmp_path / "absent" / "new", "directory does not exist"), (tmp_path, "is a directory")):
        with pytest.raises(DestinationError, match=what):
            run_batch(source, where, absent, SOME, identity={})


@pytest.mark.parametrize(
    ("line", "words"),
    [("{", "is no JSON"), ("[]", "neither"), ('{"text": "a"}', "neither"), ('{"prompt": ""}', 'an empty "prompt"'),
     ('{"prompt": 3}', "that is no text"), ('{"messages": []}', "no list of"), ('{"messages": ["a"]}', "no list of"),
     ('{"prompt": "a", "messages": []}', "has both"), ('{"prompt": "a", "id": "\\ud800"}', "surrogate"),
     pytest.param('{"prompt": "a", "id": ' + "[" * 10**5, "is no JSON", id="deep")],
)  # fmt: skip
def test_refused_lines(line: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "in").write_text('{"prompt": "a"}\n\n' + line + "\n")
    with pytest.raises(CheckpointError, match=f"in: Line 3 .*{words}"):
        read_requests(tmp_path / "in")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_requests(tmp_path / "absent")


def test_an_input_that_is_not_there(tiny: Loaded, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(CheckpointError, match="absent: It cannot be read"):
        run_batch(tmp_path / "absent", tmp_path / "out", lambda: tiny, SOME, identity={})


WORKER = """
import sys, time
from pathlib import Path
from zamba_compat.inference import batching
from zamba_compat.inference.generation import Sampling

def answer(loaded, requests, sampling):
    time.sleep(0.002)
    return [{"index": r.index, "text": r.prompt * 50, "new_tokens": 1} for r in requests]

batching.answer = answer
loaded = type("Loaded", (), {"device": "cpu"})()
print("ready", flush=True)
batching.run_batch(Path(sys.argv[1]), Path(sys.argv[2]), lambda: loaded, Sampling(), identity={}, batch_size=3)
"""


def test_killed_at_random(tmp_path: Path) -> None:
    """SIGKILL until it comes through: every answer once, in order."""
    source = write(tmp_path / "in", [{"prompt": f"p{i}"} for i in range(300)])
    out, chance, kills, seen = tmp_path / "out", random.Random(7), 0, [0]
    while True:
        process = subprocess.Popen([sys.executable, "-c", WORKER, source, out], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        try:
            process.wait(timeout=chance.uniform(0.01, 0.12) if kills < 12 else None)
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            seen.append(out.read_bytes().count(b"\n") if out.exists() else 0)
        time.sleep(0)
    assert process.returncode == 0 and kills >= 3 and seen == sorted(seen)
    assert any(0 < count < 300 for count in seen)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert lines == [{"index": i, "text": f"p{i}" * 50, "new_tokens": 1} for i in range(300)]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from zamba_compat.cli.main import main

    source = write(tmp_path / "in", [{"prompt": prompt} for prompt in PROMPTS])
    words = ["batch", str(TINY / "base"), str(source), str(tmp_path / "out"), "--max-new-tokens", "3"]
    assert main([*words, "--batch-size", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["answered"] == 5
    assert main([*words, "--max-new-tokens", "4"]) == 3
    assert "sampling changed since" in capsys.readouterr().err
    assert main([*words, "--batch-size", "0"]) == 2
    assert batching.read_requests(source)[1] in (tmp_path / "out.state.json").read_text()


def test_a_row_that_stops_at_a_text(tiny: Loaded, tmp_path: Path) -> None:
    requests, _ = read_requests(write(tmp_path / "in", [{"prompt": prompt} for prompt in PROMPTS]))
    whole = [one["text"] for one in answer(tiny, requests, SOME)]
    stop = whole[0][3:5]
    found = answer(tiny, requests, Sampling(max_new_tokens=12, stop=(stop,)))
    assert [one["text"] for one in found] == [text.split(stop)[0] for text in whole]
    for one, text in zip(found, whole, strict=True):
        assert (one["finish_reason"] == "stop") == (stop in text)
        assert (one["new_tokens"] < 12) == (stop in text[:-1])
        alone = generate(tiny, PROMPTS[one["index"]], Sampling(max_new_tokens=12, stop=(stop,)))
        assert (alone.text, alone.new_tokens, alone.finish_reason) == (
            one["text"],
            one["new_tokens"],
            one["finish_reason"],
        )


def test_a_journal_of_before_stop_and_min_p_is_gone_on_with(tiny: Loaded, tmp_path: Path) -> None:
    source, out = write(tmp_path / "in", [{"prompt": prompt} for prompt in PROMPTS]), tmp_path / "out"
    run_batch(source, out, lambda: tiny, SOME, identity={})
    state = json.loads((tmp_path / "out.state.json").read_text())
    assert set(state["sampling"]) == {"max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty"}
    assert run_batch(source, out, lambda: tiny, SOME, identity={}).found == 5
    with pytest.raises(DestinationError, match="sampling changed"):
        run_batch(source, out, lambda: tiny, Sampling(max_new_tokens=12, stop=("x",)), identity={})
