"""Uploads to a server on this machine that answers as the hub does: all of it in one commit, or nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.hub_server import READER, WRITER, Hub, Repo, connect, hub
from zamba_compat.cli.main import main
from zamba_compat.errors import DestinationError
from zamba_compat.operations.upload import target, upload

TINY = Path(__file__).parents[2] / "fixtures" / "tiny" / "base"
ID = "someone/new"


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(TINY, "src")
    with hub() as found:
        connect(found, monkeypatch, tmp_path / "cache", WRITER)
        yield found


def content(directory: str) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in Path(directory).rglob("*") if p.is_file()}


def test_a_conversion(there: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    """By git-lfs; what is downloaded again is verified to the last byte."""
    assert main(["convert-checkpoint", "src", "dst", "--push", ID]) == 0
    out, err = capsys.readouterr()
    assert out.endswith(f"\nprivate, on the hub: {there.endpoint}/{ID}\n") and not err
    repo = there.repos[ID]
    assert repo.private and repo.log == ["initial commit", "Upload by zamba-compat convert-checkpoint"]
    assert repo.files() == {".gitattributes": b"", **content("dst")}
    assert b"## Conversion" in repo.files()["README.md"]
    assert list(there.blobs.values()) == [repo.files()["model.safetensors"]]
    assert main(["verify", ID]) == 0
    assert "all as it was written" in capsys.readouterr().out


def test_every_command_that_writes(there: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    Path("merge.yaml").write_text("merge_method: linear\nmodels: [{model: src, parameters: {weight: 1}}]\n")
    tuned = str(TINY.parent / "tuned")
    extract = ["extract-lora", "src", tuned, "lora", "--rank", "2"]
    for command, made in ((["quantize", "src", "q"], "q"), (["merge", "merge.yaml", "m"], "m"), (extract, "lora")):
        pushed = f"someone/{command[0]}@tried"
        assert main([*command, "--push", pushed, "--public", "--json"]) == 0
        words = json.loads(capsys.readouterr().out)["pushed"]
        repo = there.repos[f"someone/{command[0]}"]
        assert words["url"] == f"{there.endpoint}/someone/{command[0]}/tree/tried" and not words["private"]
        assert words["commit"] == repo.branches["tried"] and not repo.private
        assert repo.files("main").keys() == {".gitattributes"}
        assert repo.files("tried") == {".gitattributes": b"", **content(made)}
        assert "README.md" in repo.files("tried") and words["files"] == len(repo.files("tried")) - 1


def test_nothing_is_pushed_where_anything_fails(there: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    Path("src/model.safetensors").write_bytes(b"damaged")
    assert main(["convert-checkpoint", "src", "dst", "--push", ID]) == 3
    shutil.copy(TINY / "model.safetensors", "src")
    assert main(["convert-checkpoint", "src", "dst", "--push", ID, "--dry-run"]) == 0
    assert main(["convert-checkpoint", "src", "dst", "--public"]) == 2
    assert main(["convert-checkpoint", "src", "dst", "--push", "new"]) == 2
    err = capsys.readouterr().err
    assert "Give --push ID with it" in err and "'new' is no name that a model on the hub can have" in err
    assert not there.repos and not Path("dst").exists()
    assert {request.split()[0] for request in there.requests} == {"GET"}


def refusal(name: str, *, public: bool = False) -> str:
    with pytest.raises(DestinationError) as caught:
        target(name, public=public)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_known_before_anything_takes_time(there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    there.repos["someone/open"] = Repo()
    there.repos["someone/open"].commit("main", {}, "first")
    there.repos["someone/closed"] = Repo(private=True)
    there.repos["someone/closed"].commit("main", {}, "first")
    assert "someone/open: The model is there, and it is public." in refusal("someone/open")
    assert "or leave --public out" in refusal("someone/closed", public=True)
    monkeypatch.setenv("HF_TOKEN", READER)
    assert "The token may only read. Log in with one that may write: hf auth login" in refusal(ID)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "The hub does not accept the token." in refusal(ID)
    monkeypatch.delenv("HF_TOKEN")
    assert f"{ID}: Nobody is logged in to the hub here. Log in with a token" in refusal(ID)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert "The hub cannot be reached (http://127.0.0.1:9: Connection refused)" in refusal(ID)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE keeps everything from the hub." in refusal(ID)


@pytest.mark.parametrize("part", ["api/repos/create", "preupload", "objects/batch", "PUT lfs/", "commit"])
def test_an_upload_that_fails_leaves_the_result_and_says_how_to_go_on(
    part: str, there: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    there.broken[part] = 403
    assert main(["convert-checkpoint", "src", "a dst", "--push", ID, "-q"]) == 3
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1
    command = f"zamba-compat upload 'a dst' {ID}"
    assert f"{ID}: The hub refuses it: 403: " in err and err.endswith(f"a dst is complete; to upload it: {command}\n")
    assert part == "api/repos/create" or there.repos[ID].files().keys() == {".gitattributes"}
    there.broken.clear()
    assert main(["upload", "a dst", ID, "-q"]) == 0
    assert capsys.readouterr().out == f"{there.endpoint}/{ID}\n"
    assert there.repos[ID].files() == {".gitattributes": b"", **content("a dst")}
    assert there.repos[ID].log == ["initial commit", "Upload by zamba-compat upload"]


def test_weights_that_were_there_are_replaced(there: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    repo = there.repos.setdefault(ID, Repo(private=True))
    old = dict.fromkeys(("model-1.safetensors", "model.safetensors.index.json", "pytorch_model.bin"), b"old")
    kept = {"LICENSE": b"kept", "onnx/model.safetensors": b"kept"}
    repo.commit("main", old | kept | {"config.json": b"{}"}, "first")
    assert main(["convert-checkpoint", "src", "dst", "--push", ID]) == 0
    assert repo.files() == kept | content("dst") and len(repo.log) == 2
    assert main(["upload", "dst", ID]) == 0
    assert len(repo.log) == 2  # nothing has changed


def test_somebody_else_was_faster(there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = there.repos.setdefault(ID, Repo(private=True))
    repo.commit("main", {"config.json": b"{}"}, "first")
    assert main(["convert-checkpoint", "src", "dst", "-q"]) == 0
    where = target(ID)
    import huggingface_hub

    original: Any = huggingface_hub.HfApi.create_commit

    def late(self: object, *args: object, **kwargs: object) -> object:
        repo.commit("main", {"config.json": b"{ }"}, "theirs")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", late)
    with pytest.raises(DestinationError, match=r"Somebody else has changed .* dst is complete; to upload it: "):
        upload("dst", where)
    assert repo.log == ["first", "theirs"]


def test_what_is_not_as_it_was_written(there: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert-checkpoint", "src", "dst", "-q"]) == 0
    Path("dst/config.json").write_text("{}")
    Path("empty").mkdir()
    assert main(["upload", "dst", ID]) == 3
    assert main(["upload", "empty", ID]) == 3
    assert main(["upload", "nowhere", ID]) == 3
    err = capsys.readouterr().err
    assert "dst: It is not what was written, and was not uploaded: dst" not in err  # whole paths
    assert "config.json: It is not what was written." in err and "zamba-compat verify dst lists" in err
    assert "empty: There is no config.json." in err and "nowhere: The directory cannot be read" in err
    assert err.count("\n") == 3 and not there.repos


def test_an_adapter(there: Hub) -> None:
    """Without a manifest: what is there is uploaded, but for hidden files."""
    for name in ("lora/adapter_config.json", "lora/adapter_model.safetensors", "lora/.cache/x"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("{}")
    done = upload("lora", target(ID))
    names = {".gitattributes", "adapter_config.json", "adapter_model.safetensors"}
    assert there.repos[ID].files().keys() == names and done.files == 2


def test_ctrl_c(there: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", stop)
    assert main(["convert-checkpoint", "src", "dst", "--push", ID, "-q"]) == 130
    assert "Stopped by SIGINT; nothing was uploaded. dst is complete; to upload it: " in capsys.readouterr().err
