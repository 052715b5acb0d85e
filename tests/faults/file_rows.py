"""Rows 1 to 22, 26, 28, 46, 47 and 58: files that are not what they should be. Each function breaks an arena."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from faults.arena import INDEX, OWN, SHARDS, Arena
from faults.commands import WRITING
from support.raw_files import with_header

Make = Callable[[Arena], Any]


def _shard_named(name: str) -> Make:
    """The index says `name` where it said the second shard."""

    def make(arena: Arena) -> None:
        def rename(index: dict[str, Any]) -> None:
            for key, shard in index["weight_map"].items():
                if shard == SHARDS[1]:
                    index["weight_map"][key] = name.format(top=arena.top)

        arena.change_json(INDEX, rename)

    return make


def traversing(arena: Arena) -> None:
    arena.outside()
    _shard_named("../elsewhere/weights.safetensors")(arena)


def absolute(arena: Arena) -> None:
    arena.outside()
    _shard_named("{top}/elsewhere/weights.safetensors")(arena)


drive, unc, backslash = map(_shard_named, (r"C:\weights.safetensors", r"\\host\x.safetensors", r"..\x.safetensors"))


def link_out(arena: Arena) -> None:
    arena.shard.symlink_to(arena.outside())


def link_to_a_secret(arena: Arena) -> None:
    (arena.top / "secret").write_text("the secret's first words " * 40)
    arena.shard.unlink()
    arena.shard.symlink_to(arena.top / "secret")


def hub_cache(arena: Arena) -> None:
    """The checkpoint becomes a snapshot in the hub's cache, its files links to blobs."""
    home = arena.top / "models--a--b"
    (home / "blobs").mkdir(parents=True)
    for number, path in enumerate(sorted(arena.source.iterdir())):
        blob = home / "blobs" / f"{number:040x}"
        path.rename(blob)
        path.symlink_to(os.path.relpath(blob, home / "snapshots" / "0"))
    (home / "snapshots").mkdir()
    arena.source.rename(home / "snapshots" / "0")
    arena.source.symlink_to(home / "snapshots" / "0")


def fifo(arena: Arena) -> None:
    arena.shard.unlink()
    os.mkfifo(arena.shard)


def directory(arena: Arena) -> None:
    arena.shard.unlink()
    arena.shard.mkdir()


def bin_in_the_index(arena: Arena) -> None:
    hostile_pickle(arena.source / "weights.bin", arena)
    _shard_named("weights.bin")(arena)


def missing_shard(arena: Arena) -> None:
    arena.shard.unlink()


def tensor_the_shard_lacks(arena: Arena) -> None:
    arena.change_json(INDEX, lambda index: index["weight_map"].update({OWN: SHARDS[1]}))


def tensor_the_index_lacks(arena: Arena) -> None:
    arena.change_json(INDEX, lambda index: index["weight_map"].pop(OWN))


def tensor_twice(arena: Arena) -> None:
    """Equal in the first shard and in a fourth, which the index gives something else for."""
    from safetensors.torch import load_file, save_file

    first = load_file(arena.source / SHARDS[0])
    name, extra = "model-extra.safetensors", next(key for key in first if key != OWN)
    save_file({OWN: first[OWN], extra: first.pop(extra)}, arena.source / name, {"format": "pt"})
    save_file(first, arena.source / SHARDS[0], {"format": "pt"})
    arena.change_json(INDEX, lambda index: index["weight_map"].update({extra: name}))


def no_metadata(arena: Arena) -> None:
    arena.change_json(INDEX, lambda index: index.pop("metadata"))


def no_weight_map(arena: Arena) -> None:
    arena.change_json(INDEX, lambda index: index.pop("weight_map"))


def list_as_weight_map(arena: Arena) -> None:
    arena.change_json(INDEX, lambda index: index.update(weight_map=sorted(index["weight_map"])))


def _text(name: str, change: Callable[[str], str]) -> Make:
    def make(arena: Arena) -> None:
        (arena.source / name).write_text(change((arena.source / name).read_text()))

    return make


key_twice_in_the_index = _text(INDEX, lambda text: text.replace(f'"{OWN}"', f'"{OWN}": "x.safetensors", "{OWN}"', 1))
key_twice_in_the_config = _text("config.json", lambda text: text.replace("{", '{"num_mem_blocks": 1, ', 1))


def key_twice_in_a_header(arena: Arena) -> None:
    """A second tensor of the name, zeros of the same size, which the library would take."""
    data = arena.shard.read_bytes()
    length = int.from_bytes(data[:8], "little")
    text, tensors = data[8 : 8 + length].rstrip(), data[8 + length :]
    header = json.loads(text)
    name = next(key for key in header if key != "__metadata__")
    entry = {**header[name], "data_offsets": [len(tensors), len(tensors) + _size(header[name])]}
    text = text[:-1] + f', "{name}": {json.dumps(entry)}}}'.encode()
    arena.shard.write_bytes(with_header(text, tensors + bytes(_size(header[name]))))


def _size(entry: dict[str, Any]) -> int:
    begin, end = entry["data_offsets"]
    return int(end - begin)


def rival(arena: Arena) -> None:
    shutil.copy(arena.shard, arena.source / "model.safetensors")


def empty_shard(arena: Arena) -> None:
    arena.shard.write_bytes(b"")


def truncated(arena: Arena) -> None:
    os.truncate(arena.shard, arena.shard.stat().st_size - 100)


def truncated_header(arena: Arena) -> None:
    os.truncate(arena.shard, 100)


def trailing(arena: Arena) -> None:
    with open(arena.shard, "ab") as file:
        file.write(bytes(64))


def long_header(arena: Arena) -> None:
    arena.shard.write_bytes(struct.pack("<Q", 2**40) + arena.shard.read_bytes()[8:])


def large_header(arena: Arena) -> None:
    arena.change_header(lambda header: header["__metadata__"].update(note="x" * 17 * 2**20))


def _entries(header: dict[str, Any]) -> list[dict[str, Any]]:
    entries = [entry for key, entry in header.items() if key != "__metadata__"]
    return sorted(entries, key=lambda entry: entry["data_offsets"])


def overlap(arena: Arena) -> None:
    def change(header: dict[str, Any]) -> None:
        first, second = next(
            (a, b) for a in _entries(header) for b in _entries(header) if a is not b and _size(a) == _size(b)
        )
        second["data_offsets"] = first["data_offsets"]

    arena.change_header(change)


def hole(arena: Arena) -> None:
    data = arena.shard.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    last = _entries(header)[-1]
    last["data_offsets"] = [place + 64 for place in last["data_offsets"]]
    begin = last["data_offsets"][0] - 64
    tensors = data[8 + length :]
    arena.shard.write_bytes(with_header(header, tensors[:begin] + bytes(64) + tensors[begin:]))


def wrong_shape(arena: Arena) -> None:
    arena.change_header(lambda header: _entries(header)[0].update(shape=[3, 5, 7]))


def unknown_dtype(arena: Arena) -> None:
    arena.change_header(lambda header: _entries(header)[0].update(dtype="F17"))


def not_utf8(arena: Arena) -> None:
    arena.index.write_bytes(arena.index.read_bytes().replace(b"model.layers.0", b"model.layers.\xff", 1))


def config_not_utf8(arena: Arena) -> None:
    path = arena.source / "config.json"
    path.write_bytes(path.read_bytes().replace(b"zamba2", b"zamba\xe9", 1))


def nested(arena: Arena) -> None:
    arena.index.write_text('{"weight_map": ' + "[" * 200_000 + "]" * 200_000 + "}")


def nested_config(arena: Arena) -> None:
    (arena.source / "config.json").write_text('{"a": ' + "[" * 200_000 + "]" * 200_000 + "}")


def shards_alike(arena: Arena) -> None:
    arena.shard.rename(arena.source / SHARDS[0].upper().replace("SAFETENSORS", "safetensors"))
    _shard_named(SHARDS[0].upper().replace("SAFETENSORS", "safetensors"))(arena)


def companions_alike(arena: Arena) -> None:
    (arena.source / "Tokenizer_Config.json").write_text("{}")


def empty_config(arena: Arena) -> None:
    (arena.source / "config.json").write_bytes(b"")


def config_no_json(arena: Arena) -> None:
    (arena.source / "config.json").write_text("<html>404</html>")


class Hostile:
    """Makes a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def hostile_pickle(path: Path, arena: Arena) -> None:
    """A file that would make a directory, alone in its top level, if it were unpickled."""
    marker = arena.top / "ran"
    torch.save({OWN: torch.zeros(1), "x": Hostile(marker)}, path)
    arena.absent.append(marker)


def only_a_pickle(arena: Arena) -> None:
    for name in (INDEX, *SHARDS):
        (arena.source / name).unlink()
    hostile_pickle(arena.source / "pytorch_model.bin", arena)


def only_a_pickle_allowed(arena: Arena) -> None:
    only_a_pickle(arena)
    for command in (*WRITING, "inspect"):
        arena.arguments[command] = ["--allow-pickle"]


def old_pickle(arena: Arena) -> None:
    """In the format before zip archives, and not even a state dict."""
    only_a_pickle_allowed(arena)
    (arena.source / "pytorch_model.bin").write_bytes(pickle.dumps(Hostile(arena.top / "ran")))


def pickles_beside(arena: Arena) -> None:
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth"):
        hostile_pickle(arena.source / name, arena)


def remote_code(arena: Arena) -> None:
    marker = arena.top / "ran"
    for name in ("configuration_evil.py", "modeling_evil.py", "tokenization_evil.py"):
        (arena.source / name).write_text(f"import os\nos.mkdir({str(marker)!r})\n")
    arena.change_json(
        "config.json",
        lambda config: config.update(
            auto_map={"AutoConfig": "configuration_evil.C", "AutoModelForCausalLM": "modeling_evil.M"}
        ),
    )
    arena.change_json(
        "tokenizer_config.json",
        lambda config: config.update(auto_map={"AutoTokenizer": ["tokenization_evil.T", None]}),
    )
    arena.absent.append(marker)


def stray(arena: Arena) -> None:
    shutil.copy(arena.shard, arena.source / "model-00009-of-00009.safetensors")
