"""Models of the hub, from a server on this machine that answers as the hub does."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.hub_server import WRITER, Hub, connect, hub
from support.raw_files import A, B, pack, write_sharded, write_single
from zamba_compat.checkpoint.hub.download import fetch
from zamba_compat.checkpoint.hub.names import HubName, on_hub, parse
from zamba_compat.checkpoint.reading.location import locate
from zamba_compat.checkpoint.reading.opening import open_checkpoint
from zamba_compat.cli.main import main
from zamba_compat.errors import CheckpointError

ID, COMMIT = "someone/small", "0123456789" * 4
NAME = HubName(ID)


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.chdir(tmp_path)
    with hub() as found:
        connect(found, monkeypatch, tmp_path / "cache")
        yield found


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = write_sharded(tmp_path / "served")
    for name in ("tokenizer.json", "README.md", "LICENSE", "training_args.bin", "photo.png", "modeling.py"):
        (directory / name).write_text("{}")
    write_single(directory / "onnx")
    return directory


def refusal(name: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        locate(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_names() -> None:
    assert parse("a/b") == HubName("a/b") and parse("a/b@v1.0/x") == HubName("a/b", "v1.0/x")
    assert str(HubName("a/b", "c")) == "a/b@c"
    for other in ("a", "a/b/c", "./a/b", "a/b@", "a/b@c d", "a/b@c@d", "/a", "a/b.", "a/b:c"):
        found = parse(other)
        assert found is None or other == "a/b.", other


def test_what_is_here_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: Hub) -> None:
    write_single(tmp_path / "someone" / "small")
    assert on_hub(ID) is None and locate(ID).directory == tmp_path / "someone" / "small"
    assert f"{ID}@main: {ID} lies on this machine" in refusal(f"{ID}@main")
    assert not there.requests


def test_only_what_belongs_to_a_checkpoint_and_only_once(there: Hub, model: Path, tmp_path: Path) -> None:
    there.add(ID, model, COMMIT)
    with open_checkpoint(ID) as checkpoint:
        assert list(checkpoint.tensors) == ["a", "c", "b"]
        assert checkpoint.identity["name"] == ID and checkpoint.identity["revision"] == COMMIT
        checkpoint.verify_unchanged()
        directory = checkpoint.path
    assert directory.parent.parent.parent == tmp_path / "cache"
    weights = {"model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json"}
    beside = {"config.json", "tokenizer.json", "README.md", "LICENSE"}
    assert {path.name for path in directory.iterdir()} == weights | beside
    assert len(there.asked("GET", "model-1.safetensors")) == 1
    there.requests.clear()
    assert fetch(NAME) == directory
    assert not there.asked("GET", "resolve/")


def test_a_branch_that_moved(there: Hub, model: Path) -> None:
    repo = there.add(ID, model, COMMIT)
    first = fetch(NAME)
    second = repo.commit("main", {**repo.files(), "model-2.safetensors": pack({"b": ("F32", [2], bytes(8))})}, "new")
    there.requests.clear()
    assert fetch(NAME).name == second and first.name == COMMIT
    assert len([path for path in there.asked("GET", "resolve/") if path.endswith(".safetensors")]) == 1


@pytest.mark.parametrize("revision", ["old", COMMIT, "refs/pr/1"])
def test_a_revision(revision: str, there: Hub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = there.add(ID, model, COMMIT)
    repo.branches |= {"old": COMMIT, "refs/pr/1": COMMIT}
    repo.commit("main", {}, "all is gone")
    name = f"{ID}@{revision}"
    assert locate(name).revision == COMMIT and locate(name).name == ID
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    there.requests.clear()
    assert locate(name).revision == COMMIT and not there.requests
    monkeypatch.chdir(Path("/"))
    assert f"hf download {ID} --revision other" in refusal(f"{ID}@other")


def test_pickled_weights_only_where_there_are_no_others(there: Hub, tmp_path: Path) -> None:
    both = write_single(tmp_path / "both")
    (both / "pytorch_model.bin").write_bytes(b"x")
    there.add("someone/both", both)
    assert not (fetch(HubName("someone/both")) / "pytorch_model.bin").exists()
    (both / "model.safetensors").unlink()
    there.add("someone/pickled", both)
    with pytest.raises(CheckpointError, match=r"someone/pickled/pytorch_model\.bin: These weights are pickled"):
        open_checkpoint("someone/pickled")
    assert not there.asked("GET", "someone/pickled/resolve")
    assert (fetch(HubName("someone/pickled")) / "pytorch_model.bin").read_bytes() == b"x"


def test_two_models_in_one_place(there: Hub, model: Path) -> None:
    (model / "model.safetensors").write_bytes(pack({"a": A, "b": B}))
    there.add(ID, model)
    assert "side by side" in refusal(ID)
    assert not [path for path in there.asked("GET", "resolve/") if path.endswith(".safetensors")]


def test_what_the_hub_refuses(there: Hub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there.add("someone/gated", model, gated=True)
    there.add("someone/private", model, private=True)
    said = refusal("someone/gated")
    assert "someone/gated: The model is gated" in said
    assert f"Ask for access on {there.endpoint}/someone/gated, then" in said and said.endswith("hf auth login")
    for name in ("someone/private", "someone/nothing"):
        assert f"{name}: There is no such directory, and no such model on the hub that may be read." in refusal(name)
    there.add(ID, model)
    assert f"{ID}@v9: The model has no revision v9. Its revisions: {there.endpoint}/{ID}" in refusal(f"{ID}@v9")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert f"{ID}: The hub does not accept the token. Log in again (hf auth login)" in refusal(ID)
    monkeypatch.setenv("HF_TOKEN", WRITER)
    assert locate("someone/private").name == "someone/private" and locate("someone/gated").name == "someone/gated"


def test_a_hub_that_is_out_of_order(there: Hub, model: Path) -> None:
    there.add(ID, model, COMMIT)
    there.broken["api/models"] = 500
    assert f"{ID}: The hub answers 500: It is out of order. Try again later" in refusal(ID)
    there.broken.clear()
    fetch(NAME)
    there.broken["api/models"] = 500
    assert fetch(NAME).name == COMMIT  # the cache has it


def test_a_download_that_breaks_off_goes_on(there: Hub, model: Path) -> None:
    there.add(ID, model, COMMIT)
    there.broken["GET someone/small/resolve/" + COMMIT + "/model-2"] = 403
    assert "The hub answers 403" in refusal(ID)
    there.broken.clear()
    first = there.asked("GET", "model-1.safetensors")
    with open_checkpoint(ID) as checkpoint:
        assert list(checkpoint.tensors) == ["a", "c", "b"]
    assert there.asked("GET", "model-1.safetensors") == first or not first


def commands(name: str) -> list[list[str]]:
    Path("merge.yaml").write_text(
        f"merge_method: linear\nmodels: [{{model: {{path: {name}, revision: main}}, parameters: {{weight: 1}}}}]\n"
    )
    Path("in.jsonl").write_text('{"prompt": "hi"}\n')
    named = f"{name}@main"
    return [
        ["inspect", named],
        ["verify", named],
        ["convert-checkpoint", named, "c"],
        ["quantize", named, "q"],
        ["merge", "merge.yaml", "m"],
        ["generate", named, "hi", "--max-new-tokens", "1"],
        ["chat", named],
        ["batch", named, "in.jsonl", "out.jsonl", "--max-new-tokens", "1"],
        ["evaluate", named, "--questions", "--max-new-tokens", "1"],
        ["doctor", "--check", named],
    ]


@pytest.mark.parametrize("how", ["refused", "silent"])
def test_every_command_without_a_network(
    how: str, there: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the resolver never answers, for which no library has a time-out."""
    import transformers  # noqa: F401

    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://huggingface.co")
    never = threading.Event()

    def resolve(*args: Any, **kwargs: Any) -> Any:
        if how == "silent":
            never.wait(60)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    name = "someone/" + "x" * 80
    for command in commands(name):
        asked: list[float] = []
        monkeypatch.setattr("zamba_compat.checkpoint.hub.reasons.threading.Thread", _counted(asked))
        assert main(command) == 3, command
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and f"{name}@main: There is no such directory, and the local hub cache" in said
        reason = "no answer within 1.5 s" if how == "silent" else "Name or service not known"
        assert f"The hub cannot be reached (https://huggingface.co: {reason})." in said
        assert said.endswith(f"hf download {name} --revision main\n")
        assert len(asked) == 1, command  # nobody waits twice
    never.set()


def _counted(asked: list[float]) -> type[threading.Thread]:
    class Counted(threading.Thread):
        def start(self) -> None:
            asked.append(time.monotonic())
            super().start()

    return Counted


TINY = Path(__file__).parents[2] / "fixtures" / "tiny" / "base"


def test_every_command_reads_the_hub(
    there: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "made"
    assert main(["convert-checkpoint", str(TINY), str(made), "-q"]) == 0
    (made / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[-1].content }}")
    there.add("someone/tiny", made, COMMIT)
    monkeypatch.setattr("sys.stdin", None)
    for command in commands("someone/tiny"):
        status = main([*command, "--json"])
        out, err = capsys.readouterr()
        words = json.loads(out)
        if command[0] == "chat":
            assert "It is closed" in err  # the model was loaded
        elif command[0] == "verify":
            assert status == 1 and all("chat_template.jinja" in fault for fault in words["faults"])
            assert words["tensors"] and words["bytes"]
        else:
            assert status == 0, (command, err)
        assert not err or command[0] == "chat", err  # no bars where nobody looks
    assert len(there.asked("GET", "resolve/" + COMMIT + "/model.safetensors")) == 1
    made_by = json.loads(Path("c", "zamba_compat_manifest.json").read_text())["sources"]
    assert made_by[0]["name"] == "someone/tiny" and made_by[0]["revision"] == COMMIT
    assert "someone/tiny" in Path("m", "README.md").read_text().split("---")[1]


def test_bars_are_shown_where_somebody_looks(
    there: Hub, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars

    enable_progress_bars()  # whatever a test before has left
    there.add(ID, model)
    disabled: list[bool] = []
    original = huggingface_hub.snapshot_download

    def download(*args: Any, **kwargs: Any) -> Any:
        disabled.append(are_progress_bars_disabled())
        return original(*args, **kwargs)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    for terminal, words in ((True, []), (True, ["-q"]), (False, []), (True, ["--json"])):
        monkeypatch.setattr("sys.stderr.isatty", lambda terminal=terminal: terminal)
        main(["inspect", ID, *words])
        out = capsys.readouterr().out
    assert disabled == [False, True, True, False] and not are_progress_bars_disabled()
    assert "a" in json.loads(out)  # bars go to standard error


def test_a_part_of_a_model_in_the_cache(there: Hub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as what AutoTokenizer leaves there."""
    import huggingface_hub

    there.add(ID, model, COMMIT)
    huggingface_hub.hf_hub_download(ID, "tokenizer.json")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert f"{ID}: There is no such directory, and the local hub cache holds a part of the model" in refusal(ID)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    shutil.rmtree(model)
    assert (fetch(NAME) / "model-2.safetensors").exists()
