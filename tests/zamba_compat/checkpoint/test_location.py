"""What a person names as a checkpoint, and what lies beside the weights."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.hub_server import serving
from support.raw_files import A, B, pack, refuse, snapshot, write_sharded, write_single
from zamba_compat.checkpoint.reading.location import locate
from zamba_compat.checkpoint.reading.opening import open_checkpoint
from zamba_compat.errors import CheckpointError

posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX files")


def test_any_file_name_when_it_is_given(tmp_path: Path) -> None:
    write_single(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "merged.safetensors")
    with open_checkpoint(tmp_path / "merged.safetensors") as checkpoint:
        assert list(checkpoint.tensors) == ["a", "b"]
    error = refuse(tmp_path, "There is no model.safetensors")
    assert "merged.safetensors" in (error.remedy or "")


def test_companions(tmp_path: Path) -> None:
    write_single(tmp_path)
    copied = ["README.md", "chat_template.jinja", "generation_config.json", "tokenizer.model"]
    for name in [*copied, ".gitattributes", "zamba_compat_manifest.json", "modeling.py", "training_args.bin"]:
        (tmp_path / name).write_text("x")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool.jinja").write_text("x")
    (tmp_path / "runs").mkdir()
    with open_checkpoint(tmp_path) as checkpoint:
        names = [str(path.relative_to(checkpoint.path)) for path in checkpoint.companions]
    assert names == [*copied, str(Path("additional_chat_templates", "tool.jinja"))]
    text = " ".join(checkpoint.warnings)
    assert "modeling.py" in text
    assert "runs" in text
    assert "training_args.bin" in text
    assert ".gitattributes" not in text


@posix
def test_companions_are_this_directory_s_own_files(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    write_single(tmp_path / "m")
    (tmp_path / "m" / "README.md").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "m" / "tokenizer.json")
    with open_checkpoint(tmp_path / "m") as checkpoint:
        assert checkpoint.companions == ()
        assert "'README.md', 'tokenizer.json'" in checkpoint.warnings[0]


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        open_checkpoint(tmp_path / "missing")


def test_no_weights_there(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    refuse(tmp_path, "There is no model.safetensors")
    (tmp_path / "notes.txt").write_text("x")
    refuse(tmp_path / "notes.txt", "no file of weights and no index")


def test_shards_without_an_index(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert "need their index" in str(refuse(tmp_path, "There is no").remedy)


class TestHubCache:
    """What `hf download` leaves: snapshots of links into blobs."""

    @pytest.fixture
    def cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        repo = tmp_path / "models--Zyphra--Zamba2-tiny"
        snapshot_directory = repo / "snapshots" / ("0" * 40)
        write_sharded(snapshot_directory)
        (repo / "blobs").mkdir()
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text("0" * 40)
        for number, path in enumerate(sorted(snapshot_directory.iterdir())):
            path.rename(repo / "blobs" / f"{number:064x}")
            path.symlink_to(Path("..", "..", "blobs", f"{number:064x}"))
        return repo

    @pytest.fixture(autouse=True)
    def no_default(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """snapshot_download's default for cache_dir, in every release of the hub's library."""
        import huggingface_hub

        original = huggingface_hub.snapshot_download
        monkeypatch.setattr(
            huggingface_hub, "snapshot_download", lambda name, **kwargs: original(name, cache_dir=tmp_path, **kwargs)
        )

    @posix
    def test_a_hub_id(self, cache: Path) -> None:
        with open_checkpoint("Zyphra/Zamba2-tiny") as checkpoint:
            assert list(checkpoint.tensors) == ["a", "c", "b"]
            assert checkpoint.identity["name"] == "Zyphra/Zamba2-tiny"
            assert checkpoint.identity["revision"] == "0" * 40
            assert checkpoint.roots == (cache / "snapshots" / ("0" * 40), cache / "blobs")
            checkpoint.verify_unchanged()

    @posix
    def test_a_hub_id_as_the_hub_s_own_library_lays_it_out(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """From a server on this machine that answers as the hub does."""
        import huggingface_hub

        write_sharded(tmp_path / "served")
        commit = "1234567890" * 4
        with serving(tmp_path / "served", "Zyphra/Zamba2-tiny", commit) as endpoint:
            monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
            monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
            huggingface_hub.snapshot_download("Zyphra/Zamba2-tiny", endpoint=endpoint)
        repo = tmp_path / "models--Zyphra--Zamba2-tiny"
        assert (repo / "snapshots" / commit / "model-2.safetensors").is_symlink()
        with open_checkpoint("Zyphra/Zamba2-tiny") as checkpoint:
            assert list(checkpoint.tensors) == ["a", "c", "b"]
            assert checkpoint.identity["name"] == "Zyphra/Zamba2-tiny"
            assert checkpoint.identity["revision"] == commit
            assert checkpoint.companions == () and checkpoint.warnings == ()

    @posix
    def test_row_03_links_into_blobs_are_the_cache_s_own(self, cache: Path) -> None:
        with open_checkpoint(cache / "snapshots" / ("0" * 40)) as checkpoint:
            assert len(checkpoint.shards) == 2

    @posix
    def test_row_03_other_links_of_a_snapshot_are_refused(self, cache: Path, tmp_path: Path) -> None:
        directory = cache / "snapshots" / ("0" * 40)
        (tmp_path / "elsewhere").write_bytes(pack({"b": B}))
        (directory / "model-2.safetensors").unlink()
        (directory / "model-2.safetensors").symlink_to(tmp_path / "elsewhere")
        refuse(directory, "leads out of the checkpoint")

    @posix
    def test_row_06_a_download_that_was_broken_off(self, cache: Path) -> None:
        (cache / "snapshots" / ("0" * 40) / "model-2.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"1 shards do not exist: 'model-2\.safetensors'"):
            open_checkpoint("Zyphra/Zamba2-tiny")

    def test_not_in_the_cache(self) -> None:
        with pytest.raises(CheckpointError, match="holds no such model") as caught:
            open_checkpoint("Zyphra/other")
        assert "hf download Zyphra/other" in (caught.value.remedy or "")


@posix
def test_row_04_the_source_itself(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="neither a directory nor a regular file"):
        open_checkpoint(tmp_path / "x.safetensors")


def test_row_14_a_single_file_beside_an_index(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    write_single(tmp_path)
    error = refuse(tmp_path, "side by side")
    assert "model.safetensors.index.json or" in (error.remedy or "")
    for name, count in (("model.safetensors.index.json", 2), ("model.safetensors", 1)):
        with open_checkpoint(tmp_path / name) as checkpoint:
            assert len(checkpoint.shards) == count


def test_row_14_an_index_of_the_single_file_is_no_rival(tmp_path: Path) -> None:
    write_sharded(tmp_path, {"model.safetensors": {"a": A}})
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == ["a"]


def test_row_58_stray_shards(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    strays = ["model-3.safetensors", "pytorch_model.bin", "old.gguf", "model-2.safetensors.part"]
    for name in strays:
        (tmp_path / name).write_bytes(b"x")
    before = snapshot(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == ["a", "c", "b"]
        assert checkpoint.companions == ()
        assert all(name in checkpoint.warnings[0] for name in strays)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "y/" * 3000])
def test_names_that_no_file_can_have(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be read|does not exist"):
        locate(name)
