"""Names and files that are refused: paths, links out of the checkpoint, no regular files, names that collide."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from support.raw_files import B, change_index, pack, refuse, write_sharded, write_single
from zamba_compat.checkpoint.reading.opening import open_checkpoint

posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX files")


def change_shard_of_b(directory: Path, name: str) -> None:
    change_index(directory, lambda index: index["weight_map"].update(b=name))


@pytest.mark.parametrize("name", ["../model-2.safetensors", "sub/../../x.safetensors", "sub/x.safetensors", "..", ""])
def test_row_01_shard_name_with_a_path(tmp_path: Path, name: str) -> None:
    (tmp_path / "model-2.safetensors").write_bytes(pack({"b": B}))
    write_sharded(tmp_path / "m")
    change_shard_of_b(tmp_path / "m", name)
    refuse(tmp_path / "m", "is a path")


@pytest.mark.parametrize(
    "name",
    [
        "/etc/x.safetensors",
        "C:\\x.safetensors",
        "C:x.safetensors",
        "\\\\host\\share\\x.safetensors",
        "..\\x.safetensors",
        "//host/x.safetensors",
        "x.safetensors:stream.safetensors",
    ],
)
def test_row_02_absolute_drive_unc_backslash(tmp_path: Path, name: str) -> None:
    write_sharded(tmp_path)
    change_shard_of_b(tmp_path, name)
    refuse(tmp_path, "is a path")


@posix
@pytest.mark.parametrize("sharded", [True, False])
def test_row_03_link_out_of_the_tree(tmp_path: Path, sharded: bool) -> None:
    directory = write_sharded(tmp_path / "m") if sharded else write_single(tmp_path / "m")
    shard = directory / ("model-2.safetensors" if sharded else "model.safetensors")
    shard.rename(tmp_path / "x.safetensors")
    shard.symlink_to(tmp_path / "x.safetensors")
    error = refuse(directory, "leads out of the checkpoint", inside=tmp_path)
    assert shard.name in str(error)


@posix
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_row_03_config_or_index_is_a_link_out_of_the_tree(tmp_path: Path, name: str) -> None:
    write_sharded(tmp_path / "m")
    (tmp_path / "m" / name).rename(tmp_path / "x")
    (tmp_path / "m" / name).symlink_to(tmp_path / "x")
    refuse(tmp_path / "m", "leads out of the checkpoint", inside=tmp_path)


@posix
def test_links_inside_and_to_the_directory_are_followed(tmp_path: Path) -> None:
    write_sharded(tmp_path / "m")
    (tmp_path / "m" / "model-2.safetensors").rename(tmp_path / "m" / "kept")
    (tmp_path / "m" / "model-2.safetensors").symlink_to("kept")
    (tmp_path / "link").symlink_to(tmp_path / "m")
    with open_checkpoint(tmp_path / "link") as checkpoint:
        assert checkpoint.path == tmp_path / "m"
        assert list(checkpoint.tensors) == ["a", "c", "b"]


@posix
@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "directory"])
@pytest.mark.parametrize("name", ["model-2.safetensors", "model.safetensors.index.json", "config.json"])
def test_row_04_no_regular_file(tmp_path: Path, kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_sharded(tmp_path) / name
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        monkeypatch.chdir(tmp_path)  # the name of a socket may have a hundred characters
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind(name)
    elif kind == "directory":
        path.mkdir()
    else:
        try:
            os.mknod(path, 0o020666, os.makedev(1, 5))  # /dev/zero
        except PermissionError:
            pytest.skip("only root makes devices")
    refuse(tmp_path, "no regular file")


@pytest.mark.parametrize(
    "name", ["model-2.bin", "model-2.pt", "model-2.safetensors.bin", "model-2", "model-2.SAFETENSORS"]
)
def test_row_05_another_kind_of_shard(tmp_path: Path, name: str) -> None:
    write_sharded(tmp_path)
    (tmp_path / "model-2.safetensors").rename(tmp_path / name)
    change_shard_of_b(tmp_path, name)
    refuse(tmp_path, r"is no \.safetensors file")


@posix
@pytest.mark.parametrize("names", [("README.md", "readme.md"), ("caf\u00e9.txt", "cafe\u0301.txt"), ("Config.json",)])
def test_row_28_names_beside_the_weights(tmp_path: Path, names: tuple[str, ...]) -> None:
    write_single(tmp_path)
    for name in names:
        (tmp_path / name).write_text(name)
    if len(list(tmp_path.iterdir())) < len(names) + 2:
        pytest.skip("this file system keeps one of them")
    refuse(tmp_path, "one and the same")
