"""Shards as the hub's library plans them and safetensors writes them."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.raw_files import snapshot
from zamba_compat.checkpoint.dtypes import SIZES, from_torch, to_torch
from zamba_compat.checkpoint.reading.manifest import digest_of
from zamba_compat.checkpoint.reading.opening import open_checkpoint
from zamba_compat.checkpoint.recipe import Recipe
from zamba_compat.checkpoint.writing.manifest import write_manifest
from zamba_compat.checkpoint.writing.staging import Staging
from zamba_compat.checkpoint.writing.writer import (
    BEGUN,
    Output,
    Written,
    parse_size,
    peak_bytes,
    plan_shards,
    shard_names,
    write_shards,
)
from zamba_compat.errors import CheckpointError, DestinationError

torch = pytest.importorskip("torch")
Tensors = dict[str, Any]


def tensors_of_every_dtype() -> Tensors:
    """In an order that is none of the file's; odd sizes, so that alignment matters."""
    tensors = {f"{word.lower()}.{n}": torch.arange(n).to(to_torch(word)) for word in SIZES for n in (7, 3)}
    return {"scalar": torch.tensor(2.5), "é.weight": torch.zeros(2, 3), **tensors}


def outputs_of(tensors: Tensors) -> list[Output]:
    return [Output(n, from_torch(t.dtype) or "", tuple(t.shape), Recipe((n,))) for n, t in tensors.items()]


def write(destination: Path, tensors: Tensors, max_shard_size: int = 10**9, **kwargs: Any) -> Written:
    outputs = kwargs.pop("outputs", None) or outputs_of(tensors)
    read = kwargs.pop("read", tensors.__getitem__)
    with Staging(destination, overwrite=True, sources=()) as staging:
        written = write_shards(staging, outputs, read, max_shard_size=max_shard_size, **kwargs)
        staging.write("config.json", "{}")
        staging.commit()
    return written


def bits(tensor: Any) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def read_back(directory: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    from safetensors.torch import load_file

    found = {name: t for shard in sorted(directory.glob("*.safetensors")) for name, t in load_file(shard).items()}
    return {name: (str(t.dtype), tuple(t.shape), bits(t)) for name, t in sorted(found.items())}


def expected(tensors: Tensors) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (str(t.dtype), tuple(t.shape), bits(t)) for name, t in sorted(tensors.items())}


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("1.5 MB", 1_500_000), ("2kb", 2000), ("3TB", 3 * 10**12), ("7", 7), (" 9B ", 9)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "GB", "-5GB", "0", "0.1", "5GiB", "5 G B", "1e9", "nan", "5GB5", "\u0665GB", 400 * "9"]
)
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="no size"):
        parse_size(text)


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=30), limit=st.integers(1, 60))
def test_shards_are_the_hub_s(sizes: list[int], limit: int) -> None:
    from huggingface_hub import split_torch_state_dict_into_shards

    tensors = {f"t{n}": torch.zeros(size, dtype=torch.uint8) for n, size in enumerate(sizes)}
    plan = plan_shards(outputs_of(tensors), limit)
    names = shard_names(len(plan))
    split = split_torch_state_dict_into_shards(tensors, max_shard_size=limit)
    ours = {name: [output.name for output in shard] for name, shard in zip(names, plan, strict=True)}
    assert ours == split.filename_to_tensors


def test_two_outputs_of_one_name_are_an_error() -> None:
    outputs = outputs_of({"a": torch.zeros(1)}) * 2
    with pytest.raises(ValueError, match="one name"):
        plan_shards(outputs, 10)


def test_byte_for_byte_what_safetensors_writes(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tensors = tensors_of_every_dtype()
    write(tmp_path / "d", tensors)
    save_file(tensors, tmp_path / "theirs", {"format": "pt"})
    assert (tmp_path / "d" / "model.safetensors").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert not (tmp_path / "d" / "model.safetensors.index.json").exists()


def test_every_tensor_is_aligned(tmp_path: Path) -> None:
    write(tmp_path / "d", tensors_of_every_dtype(), metadata={"x": "y"})
    with open_checkpoint(tmp_path / "d") as checkpoint:
        assert checkpoint.metadata == {"format": "pt", "x": "y"}
        assert all(info.offset % SIZES[info.dtype] == 0 for info in checkpoint.tensors.values())


def test_row_10_the_index_has_metadata(tmp_path: Path) -> None:
    tensors = tensors_of_every_dtype()
    written = write(tmp_path / "d", tensors, 100)
    index = json.loads((tmp_path / "d" / "model.safetensors.index.json").read_text())
    total = sum(tensor.nbytes for tensor in tensors.values())
    assert index["metadata"] == {"total_size": total} == {"total_size": written.total_size}
    assert index["weight_map"] == dict(sorted(written.weight_map.items()))
    assert list(index["weight_map"]) == sorted(tensors)


@settings(max_examples=15, deadline=None)
@given(limit=st.integers(1, 700), way=st.sampled_from(["mapped", "file to file", "computed"]))
def test_any_shard_size_gives_the_same_tensors(tmp_path_factory: pytest.TempPathFactory, limit: int, way: str) -> None:
    from safetensors.torch import save_file

    tmp_path = tmp_path_factory.mktemp("any")
    tensors = tensors_of_every_dtype()
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    outputs = outputs_of(tensors)
    if way == "computed":
        outputs = [Output(o.name, o.dtype, o.shape, Recipe(o.recipe.sources, torch.clone)) for o in outputs]
    with open_checkpoint(tmp_path / "m") as checkpoint:
        stored_bytes = checkpoint.stored_bytes if way == "file to file" else None
        read = (lambda name: pytest.fail(name)) if stored_bytes else checkpoint.read
        written = write(tmp_path / "d", {}, limit, outputs=outputs, read=read, stored_bytes=stored_bytes)
    assert read_back(tmp_path / "d") == expected(tensors)
    assert written.sha256 == {name: hashlib.sha256(bits(t)).hexdigest() for name, t in tensors.items()}
    with open_checkpoint(tmp_path / "d") as checkpoint:  # and it passes every check of ours
        assert {shard.name: shard.size for shard in checkpoint.shards} == written.shards
        assert {name: info.shard for name, info in checkpoint.tensors.items()} == written.weight_map
    shutil.rmtree(tmp_path)


def test_recipes(tmp_path: Path) -> None:
    a, b = torch.arange(6.0).reshape(2, 3), torch.ones(2, 3)
    outputs = [
        Output("sum", "F32", (2, 3), Recipe(("a", "b"), torch.add)),
        Output("turned", "F32", (3, 2), Recipe(("a",), torch.t)),
        Output("made", "I64", (3,), Recipe((), lambda: torch.arange(3))),
        Output("renamed", "F32", (2, 3), Recipe(("b",))),
    ]
    write(tmp_path / "d", {"a": a, "b": b}, outputs=outputs)
    made = {"sum": a + b, "turned": a.t(), "made": torch.arange(3), "renamed": b}
    assert read_back(tmp_path / "d") == expected(made)


def test_a_recipe_without_a_function_has_one_source() -> None:
    for sources in ((), ("a", "b")):
        with pytest.raises(ValueError, match="no tensor"):
            Recipe(sources)


@pytest.mark.parametrize(
    "output",
    [
        Output("a", "F16", (2,), Recipe(("a",))),
        Output("a", "F32", (1, 2), Recipe(("a",))),
        Output("a", "F32", (3,), Recipe(("a",), torch.clone)),
    ],
)
def test_another_result_than_announced(tmp_path: Path, output: Output) -> None:
    with pytest.raises(CheckpointError, match=r"not F\d\d \("):
        write(tmp_path / "d", {"a": torch.zeros(2)}, outputs=[output])
    assert snapshot(tmp_path) == {}


def test_row_25_what_is_not_finite_is_named(tmp_path: Path) -> None:
    tensors = {
        "a": torch.ones(5),
        "b": torch.tensor([1.0, float("nan")], dtype=torch.bfloat16),
        "c": torch.full((3,), -float("inf")),
        "d": torch.full((3,), -1, dtype=torch.int64),
    }
    assert write(tmp_path / "d", tensors).nonfinite == ("b", "c")


def test_progress_adds_up(tmp_path: Path) -> None:
    told: list[int] = []
    written = write(tmp_path / "d", tensors_of_every_dtype(), 50, progress=told.append)
    assert sum(told) == written.total_size


def test_row_51_room_is_checked_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = tensors_of_every_dtype()
    size = sum(len(data) for data in (write(tmp_path / "d", tensors), snapshot(tmp_path / "d"))[1].values() if data) - 2
    usage = type("Usage", (), {"free": size - 1})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(Staging, "create", lambda *args: pytest.fail("a file was made"))
    with pytest.raises(DestinationError, match="are free"):
        write(tmp_path / "e", tensors)
    assert not (tmp_path / "e").exists()


def test_row_57_the_peak_is_that_of_the_largest_computation() -> None:
    tensors = {"a": torch.zeros(1000), "b": torch.zeros(10)}
    infos = {o.name: type("Info", (), {"nbytes": o.nbytes}) for o in outputs_of(tensors)}
    copies = peak_bytes(outputs_of(tensors), infos)  # type: ignore[arg-type]
    assert copies < 64 * 2**20
    computed = [Output("c", "F32", (10,), Recipe(("a", "b"), torch.add)), *outputs_of(tensors)]
    assert peak_bytes(computed, infos) == copies + 2 * 4040 + 40  # type: ignore[arg-type]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("way", ["mapped", "file to file", "computed", "pieces"])
def test_memory_does_not_grow_with_the_checkpoint(tmp_path: Path, way: str) -> None:
    """The peak of anonymous memory over 16 tensors of 8 MiB stays below a few of them, however slow the hashing is."""
    from safetensors.torch import save_file

    (tmp_path / "config.json").write_text("{}")
    save_file({f"t{n:02}": torch.full((2**21,), float(n)) for n in range(16)}, tmp_path / "model.safetensors")
    program = f"""
from pathlib import Path
import huggingface_hub.serialization, mmap, numpy, time, torch
from zamba_compat.checkpoint.reading.opening import open_checkpoint
from zamba_compat.checkpoint.writing.pipeline import Examined
from zamba_compat.checkpoint.recipe import Recipe
from zamba_compat.checkpoint.writing.staging import Staging
from zamba_compat.checkpoint.writing.writer import Output, write_shards
def anonymous(n=0):
    lines = Path("/proc/self/status").read_text().splitlines()
    peak.append(next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")))
peak = []
take = Examined.take
def slow(self, chunk):
    time.sleep(0.04)
    take(self, chunk)
def piece(part):  # in memory that goes back to the system when it is freed, unlike that of malloc
    memory = mmap.mmap(-1, 4 * len(part), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=part.dtype).copy_(part)
pieces = None
if {way!r} == "pieces":
    Examined.take, pieces = slow, lambda tensor: map(piece, tensor.split(2**20))
with open_checkpoint({str(tmp_path)!r}) as checkpoint:
    make = torch.neg if {way!r} in ("computed", "pieces") else None
    outputs = [Output(n, i.dtype, i.shape, Recipe((n,), make, pieces=pieces)) for n, i in checkpoint.tensors.items()]
    stored = checkpoint.stored_bytes if {way!r} == "file to file" else None
    checkpoint.read("t00").neg()
    anonymous()
    with Staging({str(tmp_path / "d")!r}, overwrite=True, sources=()) as staging:
        write_shards(staging, outputs, checkpoint.read, max_shard_size=10**8, progress=anonymous, stored_bytes=stored)
print(max(peak) - peak[0])
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 48 * 1024  # of 128 MiB; in KiB


def test_the_manifest(tmp_path: Path) -> None:
    tensors = tensors_of_every_dtype()

    def run(destination: Path, order: Sequence[str]) -> dict[str, Any]:
        with Staging(destination, overwrite=True, sources=()) as staging:
            written = write_shards(staging, outputs_of(tensors), tensors.__getitem__, max_shard_size=100)
            write_manifest(staging, written, sources=[{"name": "x"}], options={"layout": "hub"})
            staging.commit()
        return json.loads((destination / "zamba_compat_manifest.json").read_text())

    manifest = run(tmp_path / "d", list(tensors))
    assert manifest["format_version"] == 2 and manifest["digest"] == digest_of(manifest)
    assert digest_of(manifest | {"sources": []}) != manifest["digest"]
    index = (tmp_path / "d" / "model.safetensors.index.json").read_bytes()
    assert manifest["files"] == {
        "model.safetensors.index.json": {"size": len(index), "sha256": hashlib.sha256(index).hexdigest()}
    }
    assert manifest["headers"].keys() == manifest["shards"].keys()
    assert manifest["package"]["name"] == "zamba_compat"
    assert manifest["sources"] == [{"name": "x"}]
    assert manifest["options"] == {"layout": "hub"}
    assert manifest["shards"] == {p.name: p.stat().st_size for p in (tmp_path / "d").glob("*.safetensors")}
    for name, tensor in tensors.items():
        entry = manifest["tensors"][name]
        assert entry["sha256"] == hashlib.sha256(bits(tensor)).hexdigest()
        assert (entry["dtype"], entry["shape"]) == (from_torch(tensor.dtype), list(tensor.shape))
        assert (tmp_path / "d" / entry["shard"]).exists()
    assert run(tmp_path / "e", list(tensors)) == manifest
    assert str(tmp_path) not in json.dumps(manifest)


@pytest.mark.parametrize(
    ("size", "count", "ahead"),
    [(BEGUN // 4, 5, 1), (BEGUN // 8, 5, 2), (3, 40, 32)],  # in float32: a whole BEGUN, half of it, a crowd
)
def test_the_next_tensors_are_begun_while_one_is_written(tmp_path: Path, size: int, count: int, ahead: int) -> None:
    """And no further ones: what a tensor begins is held until it is written."""
    begun, written, most = [], [], 0
    names = [f"{number:02}" for number in range(count)]

    def output(name: str) -> Output:
        def pieces() -> Any:
            begun.append(name)

            def rest() -> Any:
                first, second = torch.ones(size).split([2, size - 2])
                yield first
                nonlocal most
                most = max(most, len(begun) - len(written))
                written.append(name)
                yield second

            return rest()

        return Output(name, "F32", (size,), Recipe((), lambda: torch.ones(size), (size,), "F32", pieces))

    with Staging(tmp_path / "out", overwrite=False, sources=()) as staging:
        write_shards(staging, [output(name) for name in names], dict, max_shard_size=10**10)
        staging.commit()
    assert begun == written == names
    assert most == 1 + ahead


@pytest.mark.parametrize("early", [True, False], ids=["by its first piece", "by a later one"])
def test_whatever_a_tensor_fails_by_is_raised_and_ends_the_thread(tmp_path: Path, early: bool) -> None:
    def failing() -> Any:
        if not early:
            yield torch.ones(3)
        raise ZeroDivisionError

    def output(name: str, pieces: Any) -> Output:
        return Output(name, "F32", (3,), Recipe((), lambda: torch.ones(3), (3,), "F32", pieces))

    def good() -> Any:
        return iter([torch.ones(3)])

    outputs = [output("a", good), output("b", failing), output("c", good)]
    with pytest.raises(ZeroDivisionError) as found, Staging(tmp_path / "out", overwrite=False, sources=()) as staging:
        write_shards(staging, outputs, dict, max_shard_size=10**6)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("begin")]
    del found  # until here its traceback keeps every frame, so that no garbage collector ends the thread instead
