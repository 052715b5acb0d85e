"""Ranks are found exactly over pieces, what is drawn is the same everywhere, and no method depends on the threads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from support import merges
from zamba_compat.merging import streamed
from zamba_compat.merging.methods import METHODS, About, Share
from zamba_compat.merging.streamed import Cut, bernoulli, marks, uniform
from zamba_compat.merging.sums import Run
from zamba_compat.merging.workers import STEP, Workers
from zamba_compat.operations.merge import MergeOptions, merge

SIZES = [1, 7, STEP, STEP + 1, 3 * STEP + 12345]


def parents(shape: tuple[int, ...], count: int = 4) -> list[Tensor]:
    """Close ones, with many equal differences: bfloat16 has few numbers."""
    generator = torch.Generator().manual_seed(sum(shape))
    base = torch.randn(shape, generator=generator)
    moved = [base + 0.1 * torch.randn(shape, generator=generator) for _ in range(count - 1)]
    return [tensor.bfloat16() for tensor in (base, *moved)]


def told(what: str, count: int) -> None:
    assert what == "zero" and count


@pytest.mark.parametrize("size", SIZES)
def test_marks_split_equal_numbers_by_their_place(size: int) -> None:
    values = torch.randn(size, generator=torch.Generator().manual_seed(size)).mul(8).round()  # some twenty numbers
    values[: size // 3] = -0.25
    order = torch.argsort(values, stable=True)
    wanted = sorted({0, size // 5, size // 2, size - 1})
    with Workers() as workers:
        cut = Cut.of([values], Run(workers, torch.float32, told))
        found = marks(cut, lambda of, number: of.piece(number)[0], wanted)
        for rank, mark in zip(wanted, found, strict=True):
            assert mark.value == values[order[rank]]
            above = torch.cat([mark.above(number, cut.piece(number)[0]).flatten() for number in range(cut.count)])
            expected = torch.zeros(size, dtype=torch.bool)
            expected[order[rank:]] = True
            assert torch.equal(above, expected)


def test_what_is_drawn() -> None:
    numbers = uniform("0/some.weight/1", 0, 2**20)
    assert torch.equal(numbers[:1000], uniform("0/some.weight/1", 0, 1000))
    assert numbers[:3].tolist() == FIRST  # the same on every machine, and in releases to come
    assert numbers.min() >= 0 and numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 2e-3 and abs(numbers.var() - 1 / 12) < 1e-3
    for key, number in (
        ("1/some.weight/1", 0),
        ("0/other.weight/1", 0),
        ("0/some.weight/2", 0),
        ("0/some.weight/1", 1),
    ):
        assert (numbers == uniform(key, number, 2**20)).float().mean() < 1e-4


@pytest.mark.parametrize("probability", [0.0, 2.0**-25, 0.1, 0.5, 1 - 2.0**-24, 1 - 2.0**-30])
def test_what_is_drawn_with_one_probability(probability: float) -> None:
    numbers = uniform("0/some.weight/1", 3, 2**18 + 1)
    expected = numbers < torch.tensor(probability)
    assert torch.equal(bernoulli("0/some.weight/1", 3, 2**18 + 1, probability), expected)


FIRST = [0.8588830232620239, 0.6086440086364746, 0.3733413815498352]


def merged(method: str, tensors: list[Tensor], threads: int, patch: pytest.MonkeyPatch, **values: float) -> Tensor:
    """By a method with its defaults, density a half, the first tensor the base."""
    names = [f"model{number}" for number in range(len(tensors))]
    known = METHODS[method]
    _, most = known.count
    others = names[1 : 1 + (most or 3)] if known.base else names[: most or 4]
    share = Share(
        dict.fromkeys(others, 0.4) if known.main == "weight" else dict.fromkeys(others[:1], 0.3),
        {
            name: values.get(name, 0.01 if one.default is None else one.default)
            for name, one in known.takes.items()
            if not one.each
        },
        {
            name: dict.fromkeys(others, 0.5 if name == "density" else 0.1)
            for name, one in known.takes.items()
            if one.each
        },
        tuple([names[0], *others] if known.base else others),
    )
    numbers = {name: number for number, name in enumerate(names)}
    if method in ("slerp", "slerp_rowwise"):
        share = Share({names[1]: 0.3})
    used, total = known.sum(share, About("a.weight", names[0], numbers, 0, "here"))
    assert total is not None
    patch.setattr("os.sched_getaffinity", lambda _: set(range(threads)))
    with Workers() as workers:
        pieces = total.pieces([tensors[numbers[name]] for name in used], Run(workers, torch.float32, told))
        return torch.cat([piece.clone() for piece in pieces]).reshape(tensors[0].shape)


@pytest.mark.parametrize("method", METHODS)
def test_threads_change_nothing(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = parents((1500, 700))
    one, five = (merged(method, tensors, threads, monkeypatch) for threads in (1, 5))
    assert torch.equal(one, five)
    assert not torch.equal(one, tensors[0].float())


RANDOM = ("dare", "della")


@pytest.mark.parametrize("method", [name for name in METHODS if not name.startswith(RANDOM)])
@pytest.mark.parametrize("shape", [(1500, 700), (900, 1, 4), (1000,)])
def test_pieces_change_nothing(method: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = parents(shape)
    whole = merged(method, tensors, 2, monkeypatch)
    monkeypatch.setattr(streamed, "STEP", 999)
    torch.testing.assert_close(merged(method, tensors, 2, monkeypatch), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["dare_linear", "della_linear"])
@pytest.mark.parametrize("rescale", [False, True])
def test_density_and_expectation(method: str, rescale: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the elements stay, in rows and columns alike; rescaled, the l1 norm is that from before."""
    base, other, *_ = parents((800, 900))
    found = merged(method, [base, other], 2, monkeypatch, rescale=rescale, **{"lambda": 1.0})
    moved, delta = found - base.float(), (other.float() - base.float()) * 0.4
    kept = (moved != 0)[delta != 0].float()
    assert abs(kept.mean() - 0.5) < 3e-3
    part = (moved.abs().sum() / delta.abs().sum()).item()
    if rescale:
        assert part == pytest.approx(1, abs=1e-4)
    else:
        assert part == pytest.approx(0.5, abs=3e-3) if method == "dare_linear" else 0.5 < part < 0.6
    large = delta.abs() > delta.abs().median()
    kept_large = (moved != 0)[large].float().mean()
    assert abs(kept_large - (0.5 if method == "dare_linear" else 0.55)) < 6e-3


def test_nan_comes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it is found in the result, and not lost with the elements that go."""
    for method in ("ties", "dare_linear", "breadcrumbs", "della"):
        tensors = parents((30, 40), 2)
        tensors[1][3, 4] = torch.nan
        assert merged(method, tensors, 2, monkeypatch)[3, 4].isnan(), method


def test_the_seed_alone_decides(tmp_path: Path) -> None:
    """Not the shards, nor where the parents lie; and a base alone is merged of nothing."""
    config, base, other = merges.parents()
    made = []
    for name, seed, size in (("a", 0, "5GB"), ("b", 0, "300KB"), ("c", 1, "5GB")):
        first, second = merges.write(tmp_path / name, config, base, other, "hub expanded" if name == "b" else "hub hub")
        models = [{"model": str(second), "parameters": {"weight": 1, "density": 0.5}}]
        words = {"merge_method": "dare_ties", "base_model": str(first), "models": models}
        merge(words, tmp_path / name / "out", MergeOptions(random_seed=seed, max_shard_size=size))
        made.append(merges.read(tmp_path / name / "out"))
    assert all(torch.equal(made[0][key], made[1][key]) for key in base)
    assert not all(torch.equal(made[0][key], made[2][key]) for key in base)
    for method in ("ties", "sce", "ram"):
        alone = {"merge_method": method, "base_model": str(first), "models": [{"model": str(first)}]}
        report = merge(alone, tmp_path / method)
        assert report.copied == report.tensors
