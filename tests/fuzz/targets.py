"""The readers that are fuzzed: each takes the bytes of one file of a checkpoint, and raises ZambaCompatError alone."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from fuzz.mutate import mutated
from support import synthetic
from zamba_compat.checkpoint.layouts.shapes import expected_shapes, fill_in
from zamba_compat.checkpoint.reading.files import open_regular
from zamba_compat.checkpoint.reading.headers import read_header
from zamba_compat.checkpoint.reading.location import MANIFEST
from zamba_compat.checkpoint.reading.weight_map import read_index
from zamba_compat.cli.main import main
from zamba_compat.errors import ZambaCompatError
from zamba_compat.layout.config import normalise_config, to_release_config
from zamba_compat.layout.sharing import SharingMap

CORPUS = Path(__file__).with_name("corpus")
CONFIG = synthetic.make_config("2.7B", hidden_size=8, n_mamba_heads=2, vocab_size=4, adapter_rank=1)
INDEX = "model.safetensors.index.json"
_MERGE = """\
slices: [{sources: [{model: DIRECTORY, layer_range: [0, 11]}, {model: &b SOURCE, layer_range: [0, 11]}]}]
merge_method: slerp
base_model: *b
parameters:
  t: [{filter: self_attn, value: [0, 0.5, 1]}, {filter: feed_forward, value: 0.3}, {value: 0.5}]
dtype: float32
"""


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        file: what it reads, in a checkpoint of several shards.
        read: takes the checkpoint's directory; raises ZambaCompatError or returns.
    """

    file: str
    read: Callable[[Path], object]

    def run(self, directory: Path, data: bytes) -> bool:
        """Whether the bytes are accepted; the file is put back. Any error but the package's own is raised."""
        path = directory / self.file
        before = path.read_bytes()
        try:
            path.write_bytes(data)
            self.read(directory)
            return True
        except ZambaCompatError as error:
            assert str(error) and error.what
            return False
        finally:
            path.write_bytes(before)

    def mutate(self, data: bytes, draw: random.Random) -> bytes:
        return mutated(data, draw, header=self.file.endswith(".safetensors"))


def _index(directory: Path) -> None:
    index = read_index(directory / INDEX, (".safetensors",), where="index")
    assert all(Path(shard).name == shard for shard in index.shards)


def _header(directory: Path) -> None:
    """What is accepted here the library accepts too, and reads alike."""
    from safetensors import SafetensorError, safe_open

    path = next(iter(sorted(directory.glob("*.safetensors"))))
    fd = open_regular(path, where=str(path))
    try:
        header = read_header(fd, shard=path.name, where=str(path))
    finally:
        os.close(fd)
    try:
        with safe_open(path, "pt") as opened:
            assert set(opened.keys()) == {info.name for info in header.tensors}
    except SafetensorError as error:
        raise AssertionError(f"accepted here, refused by safetensors: {error}") from error


def _config(directory: Path) -> None:
    config = normalise_config(directory / "config.json")
    sharing = SharingMap.from_config(config)
    filled, _ = fill_in(config, "config")
    expected_shapes(filled, sharing, prefix="model.")
    json.dumps(to_release_config(filled))


def _command(*words: str) -> Callable[[Path], None]:
    def read(directory: Path) -> None:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main([words[0], str(directory), *words[1:]])
        assert status in (0, 1, 3), err.getvalue()
        if status:
            raise ZambaCompatError("refused")

    return read


def _merge(directory: Path) -> None:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["merge", str(directory.parent / "merge.yml"), str(directory.parent / "merged"), "--dry-run"])
    assert status in (0, 3), err.getvalue()
    if status:
        raise ZambaCompatError("refused")


TARGETS = {
    "index": Target(INDEX, _index),
    "header": Target("model-00001-of-00003.safetensors", _header),
    "config": Target("config.json", _config),
    "manifest": Target(MANIFEST, _command("verify")),
    "inspect-config": Target("config.json", _command("inspect")),
    "inspect-header": Target("model-00001-of-00003.safetensors", _command("inspect")),
    "convert-config": Target("config.json", _command("convert-checkpoint", "made", "--dry-run")),
    "yaml": Target("../merge.yml", _merge),
    "convert-index": Target(INDEX, _command("convert-checkpoint", "made", "--dry-run")),
}


def checkpoint(directory: Path) -> Path:
    """A checkpoint of three shards with a manifest, in the new directory `directory`."""
    from zamba_compat.operations.convert import Options, convert

    source = directory.with_name("source")
    state = synthetic.make_state(CONFIG)
    synthetic.write_checkpoint(source, state, CONFIG)
    size = sum(tensor.nbytes for tensor in state.values()) * 2 // 5
    convert(source, directory, Options(max_shard_size=str(size)))
    assert len(list(directory.glob("*.safetensors"))) == 3
    (directory.parent / "merge.yml").write_text(
        _MERGE.replace("DIRECTORY", str(directory)).replace("SOURCE", str(source))
    )
    return directory


def seeds(name: str, directory: Path) -> list[bytes]:
    """The target's own file, and what was kept of its inputs."""
    kept = sorted((CORPUS / name).glob("*")) if (CORPUS / name).is_dir() else []
    return [(directory / TARGETS[name].file).read_bytes(), *(path.read_bytes() for path in kept)]


def keep(name: str, data: bytes) -> Path:
    """Add an input to the corpus, which the tests replay."""
    path = CORPUS / name / sha256(data).hexdigest()[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
