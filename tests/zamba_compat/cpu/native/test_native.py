"""The loops in C: what PyTorch's operations compute, wherever tensors begin and end."""

from __future__ import annotations

import ctypes
import math
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from torch import Tensor

from support.merges import parents, read, slerp_of, write
from zamba_compat.cpu import native
from zamba_compat.cpu.native import Kernels, kernels
from zamba_compat.merging import blocks
from zamba_compat.operations.merge import merge

ROOT = Path(__file__).parents[4]
SIZES = (0, 1, 2, 31, 32, 33, 4095, 4097, 2**17 + 5)


@pytest.fixture(scope="module")
def loops(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """Those that are installed, or compiled here: a compiler at hand must give ones that work."""
    compiler = shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0])  # setuptools' too
    if compiler is None:
        pytest.skip("no C compiler")
    path = tmp_path_factory.mktemp("library") / native.LIBRARY
    source = ROOT / "zamba_compat" / "cpu" / "native" / "kernels.c"
    flags = ["-O3", "-ffp-contract=off", "-fPIC", "-shared"]  # setup.py's
    words = [*flags, "-Wall", "-Wextra", "-Werror", "-o", str(path), str(source), "-lm"]
    subprocess.run([compiler, *words], check=True)
    library = ctypes.CDLL(str(path))
    if not library.zamba_compat_kind():
        pytest.skip("a processor that the loops were not written for")
    return Kernels(library)


def random(count: int, seed: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)).bfloat16()


def test_they_are_there_where_they_can_be(loops: Kernels) -> None:
    """Installed as the README says, on a machine with a compiler."""
    found = kernels()
    assert found is not None and found.kind == loops.kind != "none"


@pytest.mark.parametrize("count", SIZES)
def test_add_is_pytorchs_to_the_last_bit(loops: Kernels, count: int) -> None:
    a, b, out, expected = random(count, 0), random(count, 1), random(count, 2), random(count, 3)
    for first, second in ((0.3, 0.7), (1.7, -0.9), (0.0, 1.0), (3e38, 1e-30)):
        loops.add(out, a, b, first, second)
        blocks.weighted(expected, [a, b], [first, second], blocks.memory())
        assert torch.equal(out, expected)
    neighbours = random(count + 2, 4)
    before = neighbours.clone()
    loops.add(neighbours[1:-1], a, b, 1.0, 0.0)
    assert torch.equal(neighbours[1:-1], a) and neighbours[0] == before[0] and neighbours[-1] == before[-1]


def test_add_of_every_bfloat16(loops: Kernels) -> None:
    """All 65,536, ties and overflow among the sums; what is NaN stays NaN."""
    a = torch.arange(2**16).to(torch.int32).to(torch.int16).view(torch.bfloat16)
    for b in (a, a.flip(0), a.roll(12345)):
        out, expected = torch.empty_like(a), torch.empty_like(a)
        loops.add(out, a, b, 0.51, 0.5)
        blocks.weighted(expected, [a, b], [0.51, 0.5], blocks.memory())
        assert torch.equal(out.isnan(), expected.isnan())
        number = ~out.isnan()
        assert torch.equal(out[number], expected[number]) and number.any() and not number.all()


@pytest.mark.parametrize("count", SIZES)
def test_products(loops: Kernels, count: int) -> None:
    a, b = random(count, 0), random(count, 1)
    x, y = a.double(), b.double()
    for found, exact, size in zip(
        loops.multiply(a, b), (x @ x, x @ y, y @ y), (x @ x, x.abs() @ y.abs(), y @ y), strict=True
    ):
        assert abs(found - float(exact)) <= 1e-6 * float(size)


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (5, 17), (64, 300), (3, 9000)])
def test_rows(loops: Kernels, rows: int, width: int) -> None:
    """Against float64, with rows that are zero, equal, opposite, and NaN."""
    a, b = random(rows * width, 0).view(rows, width), random(rows * width, 1).view(rows, width)
    expected_zero = expected_linear = 0
    if rows > 4:
        b[1], b[2] = a[1], -a[2]
        a[3] = 0.0
        a[4, 0] = math.nan
        expected_zero, expected_linear = 1, 2
    out = torch.empty(rows * width, dtype=torch.bfloat16)
    zero, linear = loops.slerp_rows(out, a, b, 0.3)
    if width > 1:
        assert (zero, linear) == (expected_zero, expected_linear)
    for number, row in enumerate(out.view(rows, width)):
        if number == 4:
            assert row.isnan().all()
            continue
        x, y = a[number].double(), b[number].double()
        cosine = float(x @ y) / max(float(x.norm() * y.norm()), 1e-300)
        angle = math.acos(max(-1.0, min(1.0, cosine)))
        weights = (0.7, 0.3)
        if 1e-6 < angle < math.pi - 1e-6:
            weights = math.sin(0.7 * angle) / math.sin(angle), math.sin(0.3 * angle) / math.sin(angle)
        exact = weights[0] * x + weights[1] * y
        assert bool(((row.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-5).all())


def test_what_they_do_not_take(loops: Kernels) -> None:
    good = random(64, 0)
    assert loops.fit(good, good[1:])
    bytes_ = torch.zeros(65, dtype=torch.uint8)
    odd = bytes_[1:].view(torch.bfloat16) if bytes_.data_ptr() % 2 else torch.frombuffer(
        bytearray(65), dtype=torch.bfloat16, offset=1, count=32
    )  # fmt: skip
    for bad in (good.float(), good.half(), good.view(8, 8).T, good.to("meta"), odd):
        assert not loops.fit(good, bad)


@pytest.mark.parametrize("method", ["slerp", "slerp_rowwise", "linear"])
def test_a_merge_is_the_same_with_and_without(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, base, other = parents()
    first, second = write(tmp_path, config, base, other)
    yml = slerp_of(first, second, config["num_hidden_layers"], 0.4) | {"merge_method": method, "dtype": "bfloat16"}
    if method == "linear":
        yml = {"merge_method": method, "dtype": "bfloat16", "parameters": {"weight": 0.5},
               "models": [{"model": str(first)}, {"model": str(second)}]}  # fmt: skip
    used: list[str] = []
    for name in ("add", "slerp_rows"):
        loop = getattr(Kernels, name)
        monkeypatch.setattr(Kernels, name, lambda *args, name=name, loop=loop: used.append(name) or loop(*args))
    found = []
    for choice in (True, False):
        used.clear()
        monkeypatch.setenv("ZAMBA_COMPAT_NATIVE", str(int(choice)))
        merge(yml, tmp_path / str(choice))
        assert bool(used) == (choice and kernels() is not None)
        found.append(read(tmp_path / str(choice)))
    for name, tensor in found[0].items():
        assert torch.allclose(tensor.double(), found[1][name].double(), rtol=2**-7, atol=1e-7), name


@pytest.mark.parametrize("content", [None, b"no library", "another"])
def test_without_a_library_that_fits(content: bytes | str | None, tmp_path: Path) -> None:
    """Not built; damaged; or one of another version of kernels.c."""
    if content == "another":
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler")
        (tmp_path / "x.c").write_text("int zamba_compat_version(void) { return 0; }")
        subprocess.run([compiler, "-shared", "-fPIC", "-o", tmp_path / native.LIBRARY, tmp_path / "x.c"], check=True)
    elif isinstance(content, bytes):
        (tmp_path / native.LIBRARY).write_bytes(content)
    file = str(tmp_path / "x.py")
    program = f"from zamba_compat.cpu import native; native.__file__ = {file!r}; print(native.kernels())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"


def test_the_switch() -> None:
    program = "from zamba_compat.cpu.native import kernels; print(kernels())"
    environment = {**os.environ, "ZAMBA_COMPAT_NATIVE": "0"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "None\n"
