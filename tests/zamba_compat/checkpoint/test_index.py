"""Opening a checkpoint: what is found, and what damaged files get. No source is changed by a refusal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.raw_files import pack, refuse, write_index, write_sharded, write_single
from zamba_compat.checkpoint.reading.opening import open_checkpoint
from zamba_compat.errors import ConfigError

LIBRARY_WORDS = ("safetensors", "torch")


def test_a_single_file(tmp_path: Path) -> None:
    write_single(tmp_path, metadata={"format": "pt"})
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.path == tmp_path
        assert checkpoint.config == {"model_type": "zamba2"}
        assert list(checkpoint.tensors) == ["a", "b"]
        assert checkpoint.format == "safetensors"
        assert checkpoint.metadata == {"format": "pt"}
        assert checkpoint.warnings == checkpoint.companions == ()
        (shard,) = checkpoint.shards
        found = os.stat(shard.path)
        assert (shard.name, shard.size, shard.mtime_ns) == ("model.safetensors", found.st_size, found.st_mtime_ns)


@pytest.mark.parametrize("name", [".", "model.safetensors.index.json"])
def test_shards(tmp_path: Path, name: str) -> None:
    write_sharded(tmp_path)
    with open_checkpoint(tmp_path / name) as checkpoint:
        assert list(checkpoint.tensors) == ["a", "c", "b"]
        assert [shard.name for shard in checkpoint.shards] == ["model-1.safetensors", "model-2.safetensors"]
        assert checkpoint.tensors["b"].shard == "model-2.safetensors"
        assert checkpoint.metadata == {}  # the sum of what is stored here is no sum of what is made of it


def test_opening_imports_no_library(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    program = (
        "import sys\nfrom zamba_compat.checkpoint.reading.opening import open_checkpoint\n"
        f"open_checkpoint({str(tmp_path)!r})\nassert not {{*{LIBRARY_WORDS}}} & {{*sys.modules}}"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_identity_names_no_path(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        identity = checkpoint.identity
    assert str(tmp_path.parent) not in json.dumps(identity)
    assert identity["name"] == tmp_path.name
    assert set(identity["files"]) == {
        "config.json",
        "model.safetensors.index.json",
        "model-1.safetensors",
        "model-2.safetensors",
    }


def test_no_tensor_at_all(tmp_path: Path) -> None:
    write_single(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(pack({}))
    refuse(tmp_path, "No tensor is stored")


def test_row_19_limits_of_index_and_config(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    (tmp_path / "config.json").write_bytes(b'{"x": "' + b"y" * 2**24 + b'"}')
    refuse(tmp_path, "more than the 16777216 bytes")
    (tmp_path / "config.json").write_text("{}")
    write_index(tmp_path, b'{"x": "' + b"y" * 2**24 + b'"}')
    refuse(tmp_path, "more than the 16777216 bytes")


@pytest.mark.parametrize("content", [b"", b" \n", b"x", b"[]", b"null"])
def test_row_29_no_json_object_in_config(tmp_path: Path, content: bytes) -> None:
    write_single(tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    refuse(tmp_path, "config", ConfigError)


def test_row_29_no_config(tmp_path: Path) -> None:
    write_single(tmp_path)
    (tmp_path / "config.json").unlink()
    refuse(tmp_path, "no config.json", ConfigError)


def test_row_47_remote_code_is_never_run(tmp_path: Path) -> None:
    write_single(tmp_path)
    (tmp_path / "config.json").write_text('{"auto_map": {"AutoConfig": "evil.Config"}}')
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with open_checkpoint(tmp_path) as checkpoint:
        assert any("auto_map" in warning for warning in checkpoint.warnings)
        assert checkpoint.companions == ()
    assert not (tmp_path / "ran").exists()
    assert "evil" not in sys.modules
