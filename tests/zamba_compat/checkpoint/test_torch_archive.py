"""One pickled state dict: what torch.load and Zyphra's own code make of it."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections import OrderedDict
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from support import synthetic
from support.synthetic import State
from zamba_compat.checkpoint.dtypes import from_torch
from zamba_compat.checkpoint.recipe import Recipe
from zamba_compat.checkpoint.writing.staging import Staging
from zamba_compat.checkpoint.writing.torch_archive import NAME, pickle_of, write_archive
from zamba_compat.checkpoint.writing.writer import Output, Written
from zamba_compat.errors import CheckpointError
from zamba_compat.operations.convert import Options, convert
from zamba_compat.operations.verify import verify

STATE: State = {
    "weight": torch.randn(3, 5).bfloat16(),
    "alone": torch.tensor(2.5),
    "none": torch.empty(0, 4, dtype=torch.float16),
    "double": torch.randn(2, 3, 4, dtype=torch.float64),
    "large": torch.randn(600_000),
    "mask": torch.tensor([True, False]),
    "count": torch.arange(7),
}


def outputs_of(state: State) -> list[Output]:
    return [Output(k, from_torch(t.dtype) or "", tuple(t.shape), Recipe((k,))) for k, t in state.items()]


def write(directory: Path, state: State = STATE, **options: Any) -> Written:
    with Staging(directory, overwrite=False, sources=()) as staging:
        written = write_archive(staging, outputs_of(state), state.__getitem__, **options)
        staging.commit()
    return written


def test_torch_reads_it(tmp_path: Path) -> None:
    counted: list[int] = []
    written = write(tmp_path / "out", progress=counted.append)
    file = tmp_path / "out" / NAME
    for mapped in (False, True):
        found = torch.load(file, weights_only=True, mmap=mapped)
        assert type(found) is OrderedDict and list(found) == list(STATE)
        for name, tensor in STATE.items():
            assert found[name].dtype == tensor.dtype and found[name].is_contiguous()
            assert torch.equal(found[name], tensor)
    assert sum(counted) == written.total_size == sum(tensor.nbytes for tensor in STATE.values())
    for name, digest in written.sha256.items():
        assert sha256(bytes(STATE[name].reshape(-1).view(torch.uint8).numpy())).hexdigest() == digest


def test_it_is_pickled_as_torch_pickles(tmp_path: Path) -> None:
    torch.save(OrderedDict(STATE), tmp_path / NAME)
    with zipfile.ZipFile(tmp_path / NAME) as theirs:
        assert theirs.read(f"{NAME.removesuffix('.bin')}/data.pkl") == pickle_of(outputs_of(STATE))


def test_records_are_aligned_and_whole(tmp_path: Path) -> None:
    write(tmp_path / "out")
    write(tmp_path / "again")
    file = tmp_path / "out" / NAME
    assert file.read_bytes() == (tmp_path / "again" / NAME).read_bytes()
    reader = torch._C.PyTorchFileReader(str(file))
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        for name in archive.namelist():
            assert reader.get_record_offset(name.split("/", 1)[1]) % 64 == 0


def test_what_is_not_finite_is_named(tmp_path: Path) -> None:
    written = write(tmp_path / "out", {"a": torch.ones(3), "b": torch.tensor([1.0, float("nan")])})
    assert written.nonfinite == ("b",)


def test_a_dtype_without_a_storage_class(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no float8_e4m3fn") as caught:
        write(tmp_path / "out", {"a": torch.zeros(2).to(torch.float8_e4m3fn)})
    assert "--format safetensors" in (caught.value.remedy or "")
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_gives_something_else(tmp_path: Path) -> None:
    state = {"a": torch.ones(3)}
    wrong = [Output("a", "F32", (4,), Recipe(("a",)))]
    with (
        Staging(tmp_path / "out", overwrite=False, sources=()) as staging,
        pytest.raises(CheckpointError, match="The recipe gives"),
    ):
        write_archive(staging, wrong, state.__getitem__)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", ["zyphra-native", "zyphra-fork", "hub"])
def test_a_checkpoint_there_and_back(layout: str, tmp_path: Path) -> None:
    config = synthetic.make_config("2.7B", intermediate_size=256, n_mamba_heads=2)
    state = synthetic.make_state(config, dtype=torch.bfloat16)
    synthetic.write_checkpoint(tmp_path / "hub", state, config)
    report = convert(tmp_path / "hub", tmp_path / "out", Options(layout=layout, format="torch"))
    assert list(report.shards) == [NAME] and report.options.is_pickled
    assert not list((tmp_path / "out").glob("*.safetensors*"))
    assert verify(tmp_path / "out").ok
    manifest = json.loads((tmp_path / "out" / "zamba_compat_manifest.json").read_text())
    assert manifest["files"][NAME]["size"] == (tmp_path / "out" / NAME).stat().st_size
    convert(tmp_path / "out", tmp_path / "back", Options(allow_pickle=True))
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)
    changed = bytearray((tmp_path / "out" / NAME).read_bytes())
    changed[len(changed) // 2] ^= 1
    (tmp_path / "out" / NAME).write_bytes(changed)
    assert not verify(tmp_path / "out").ok


def test_formats_that_do_not_go_together() -> None:
    with pytest.raises(CheckpointError, match="no format of weights"):
        Options(format="gguf")
    with pytest.raises(CheckpointError, match="read from safetensors"):
        Options(format="torch", quantize="nf4")


def test_memory_is_that_of_one_tensor(tmp_path: Path) -> None:
    """400 MB through a process whose data may grow by 120 MB."""
    code = f"""
import resource, sys, torch
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from zamba_compat.checkpoint.recipe import Recipe
from zamba_compat.checkpoint.writing.staging import Staging
from zamba_compat.checkpoint.writing.torch_archive import write_archive
from zamba_compat.checkpoint.writing.writer import Output
torch.set_num_threads(1)
made = lambda: torch.ones(10_000_000)
outputs = [Output(str(n), "F32", (10_000_000,), Recipe((), made, (10_000_000,), "F32")) for n in range(10)]
used = 1024 * int(next(l for l in open("/proc/self/status") if l.startswith("VmData")).split()[1])
resource.setrlimit(resource.RLIMIT_DATA, (used + 120_000_000,) * 2)
with Staging({str(tmp_path / "out")!r}, overwrite=False, sources=()) as staging:
    write_archive(staging, outputs, dict)
    staging.commit()
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("needs Linux")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
    assert (tmp_path / "out" / NAME).stat().st_size > 400_000_000
