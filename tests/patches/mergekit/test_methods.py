"""`zamba-compat merge` computes what mergekit 0.1.5 does, by every method, parents in any layout, of any architecture.

mergekit works in float32 here (dtype), as `merge` always does, and both write bfloat16 (out_dtype): within one rounding
step. What is drawn at random is the same for both (`support.mergekit_masks`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support import synthetic
from support.mergekit_masks import same_choices
from support.merges import read, run
from support.others import write_model
from zamba_compat.merging.methods import METHODS
from zamba_compat.operations.merge import merge

Words = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """Attributes: method; parameters of the merge; each: of every model beside the base; models; base: one is named;
    dtype: mergekit's, float64 where its float32 errs by several steps: rows of four elements, extrapolation.
    """

    method: str
    parameters: Words = field(default_factory=dict)
    each: tuple[Words, ...] = ()
    models: int = 2
    base: bool = True
    dtype: str = "float32"

    def __str__(self) -> str:
        said = [*self.parameters, *(key for words in self.each[:1] for key in words)]
        return f"{self.method}-{self.models}{'' if self.base else '-no base'}-{'-'.join(said)}"

    def words(self, paths: list[Path]) -> Words:
        """The configuration."""
        taken = paths[: self.models]
        others = taken[1:] if self.base else taken
        models: list[Words] = [{"model": str(path)} for path in taken]
        for words, own in zip(models[len(taken) - len(others) :], self.each, strict=False):
            words["parameters"] = own
        base = {"base_model": str(paths[0])} if self.base else {}
        return {
            "merge_method": self.method, "models": models, "parameters": self.parameters, **base,
            "dtype": "float32", "out_dtype": "bfloat16",
        }  # fmt: skip


W2 = ({"weight": 0.7}, {"weight": -0.4})
D2 = ({"weight": 0.7, "density": 0.4}, {"weight": 0.5, "density": 0.7})
CURVE = (
    {"weight": [0.1, 0.9], "density": 0.3},
    {"weight": [{"filter": "norm", "value": 0.8}, {"value": [1, 0.2, 0.6]}]},
)
CASES = [
    Case("linear", each=({"weight": 0.2}, {"weight": 0.5}, {"weight": 0.6}), models=3, base=False),
    Case("slerp", {"t": [0.2, 0.7]}),
    Case("nuslerp", each=W2, models=2, base=False, dtype="float64"),
    Case("nuslerp", each=W2, models=3),
    Case("nuslerp", {"nuslerp_flatten": False}, W2, 3, dtype="float64"),
    Case("nuslerp", {"nuslerp_flatten": False, "nuslerp_row_wise": True}, W2, 2, base=False),
    Case("multislerp", each=W2, models=3),
    Case("multislerp", {"normalize_weights": False}, (*W2, {"weight": 0.3}), 3, base=False),
    Case("karcher", models=3, base=False),
    Case("karcher", {"max_iter": 3, "tol": 1e-3}, models=3),
    Case("task_arithmetic", {"lambda": 0.7, "normalize": True}, D2, 3),
    Case("task_arithmetic", {}, CURVE, 3),
    Case("ties", {}, D2, 3),
    Case("ties", {"normalize": False, "rescale": True, "int8_mask": True, "lambda": 1.3}, D2, 3),
    Case("ties", {"density": [1, 0.1]}, CURVE, 3),
    Case("ties", {"density": 0.0}, W2, 3),
    Case("ties", {}, W2, 3),
    Case("dare_ties", {}, D2, 3),
    Case("dare_linear", {"rescale": False}, D2, 3),
    Case("dare_linear", {}, D2, 2),
    Case("della", {"epsilon": 0.2}, D2, 3),
    Case("della_linear", {"epsilon": [0.1, 0.25]}, D2, 3),
    Case("breadcrumbs", {"gamma": 0.05}, D2, 3),
    Case("breadcrumbs_ties", {"gamma": 0.7, "normalize": True}, D2, 3),
    Case("model_stock", models=3),
    Case("model_stock", {"filter_wise": True}, models=3, dtype="float64"),
    Case("sce", models=3),
    Case("sce", {"select_topk": [0.2, 0.6]}, models=3),
    Case("ram", {"epsilon": 1e-2}, models=3),
    Case("ramplus_tl", {"epsilon": 1e-2, "r": 0.5, "alpha": 0.9}, models=3),
    Case("nearswap", {"t": [0.001, 0.02]}),
    Case("arcee_fusion"),
    Case("passthrough", {"scale": 0.9}, models=1),
]  # fmt: skip


def test_every_method_is_here() -> None:
    assert {case.method for case in CASES} == METHODS.keys() - {"slerp_rowwise"}


@pytest.fixture(scope="module")
def zamba(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three models of the 7B pattern, the second in expanded layout. A third of what is trained has not moved."""
    folder, config = tmp_path_factory.mktemp("zamba"), synthetic.make_config("7B")
    base = synthetic.make_state(config, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(5)
    paths = [folder / name for name in ("base", "first", "second")]
    for number, path in enumerate(paths):
        state = {key: moved(tensor, number, generator) for key, tensor in base.items()}
        stored = synthetic.to_expanded(state, config) if number == 1 else state
        synthetic.write_checkpoint(path, stored, config)
    return paths


def moved(tensor: Tensor, number: int, generator: torch.Generator) -> Tensor:
    if not number:
        return tensor
    noise = torch.randn(tensor.shape, generator=generator) * tensor.float().std().nan_to_num(0.1).clamp(min=0.01) * 0.3
    return (tensor.float() + noise * (torch.rand(tensor.shape, generator=generator) < 0.7)).to(tensor.dtype)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equal(case: Case, zamba: list[Path], armed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(case, zamba, tmp_path, monkeypatch)


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def others(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp(request.param)
    return [write_model(folder / str(seed), request.param, seed, dtype=torch.bfloat16) for seed in range(3)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equal_for_other_architectures(
    case: Case, others: list[Path], armed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(case, others, tmp_path, monkeypatch)


def compare(case: Case, paths: list[Path], folder: Path, patch: pytest.MonkeyPatch) -> None:
    words = case.words(paths)
    report = merge(words, folder / "ours")
    with patch.context() as patched:
        same_choices(patched, {model: number for number, model in enumerate(report.models)})
        theirs = run({**words, "dtype": case.dtype}, folder / "theirs")
    ours = read(folder / "ours")
    assert ours.keys() == theirs.keys()
    wrong = {key: far(ours[key], theirs[key]) for key in ours if far(ours[key], theirs[key])}
    assert not wrong
    nothing = case.parameters.get("density") == 0.0
    assert nothing or any(not torch.equal(ours[key], tensor) for key, tensor in read(paths[0]).items() if key in ours)


def far(ours: Tensor, theirs: Tensor) -> int:
    """How many elements are more than one rounding step (of bfloat16, and of float32's arithmetic) apart."""
    a, b = ours.double(), theirs.double()
    step = 2.0**-7 * torch.maximum(a.abs(), b.abs()) + 1e-6 * b.abs().max()
    return int(((a - b).abs() > step).sum())
