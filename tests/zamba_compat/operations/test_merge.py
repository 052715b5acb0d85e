"""merge: the one rule for shared tensors, whatever layout the parents are in, against a reference in float64.

Rows of bad input are in tests/faults; mergekit itself is compared in tests/zamba_compat/mergekit and patches/mergekit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from support import synthetic
from support.merges import curve, parents, read, slerp_of, used_at, write
from support.synthetic import Config
from zamba_compat.cli.main import main
from zamba_compat.errors import CheckpointError, ConfigError, DestinationError, DivergentCopiesError
from zamba_compat.layout.sharing import SharingMap
from zamba_compat.operations.convert import Options, convert
from zamba_compat.operations.merge import MergeOptions, merge

TINY = Path(__file__).parents[2] / "fixtures" / "tiny"
ATTENTION, FEED_FORWARD = [0.1, 0.5, 0.9], [0.8, 0.2]
T = [
    {"filter": "self_attn", "value": ATTENTION},
    {"filter": "feed_forward", "value": FEED_FORWARD},
    {"filter": "mamba", "value": 0.75},
    {"value": 0.5},
]
STEP = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 2**-21}


def t_at(key: str, layer: int | None, layers: int) -> float:
    depth = 0 if layer is None else layer
    if "self_attn" in key:
        return curve(ATTENTION, depth, layers)
    if "feed_forward" in key:
        return curve(FEED_FORWARD, depth, layers)
    return 0.75 if "mamba" in key else 0.5


def slerp(t: float, a: Tensor, b: Tensor) -> Tensor:
    x, y = a.double().flatten(), b.double().flatten()
    cosine = (x @ y / (x.norm() * y.norm())).item()
    if abs(cosine) > 0.9995:
        return ((1 - t) * x + t * y).view(a.shape)
    angle = math.acos(cosine)
    return ((math.sin((1 - t) * angle) * x + math.sin(t * angle) * y) / math.sin(angle)).view(a.shape)


def assert_rounded(got: Tensor, want: Tensor, what: str) -> None:
    """Within one rounding step of its dtype."""
    error = (got.double() - want).abs()
    assert bool((error <= want.abs() * STEP[got.dtype] + 1e-6 * want.abs().max()).all()), what


def mean_t(key: str, config: Config) -> float:
    layers, uses = config["num_hidden_layers"], used_at(key, config)
    return sum(t_at(key, layer, layers) for layer in uses) / len(uses) if uses else t_at(key, None, layers)


@pytest.mark.parametrize("pattern", [*synthetic.PUBLISHED, "three-blocks", "hybrid-0", "irregular", "single-use"])
def test_one_rule(pattern: str, tmp_path: Path) -> None:
    config, base, other = parents(pattern)
    first, second = write(tmp_path, config, base, other)
    report = merge(slerp_of(first, second, config["num_hidden_layers"], T), tmp_path / "out")
    merged = read(tmp_path / "out")
    assert sorted(merged) == sorted(base) == sorted(SharingMap.from_config(tmp_path / "out").hub_keys())
    for key, tensor in merged.items():
        assert_rounded(tensor, slerp(mean_t(key, config), base[key], other[key]), key)
    assert report.merged == len(base) and not report.kept
    assert convert(tmp_path / "out", tmp_path / "again").source_layout in ("hub", "untied")


@pytest.mark.parametrize("layouts", ["expanded hub", "hub expanded", "expanded expanded"])
def test_layouts_change_nothing(layouts: str, tmp_path: Path) -> None:
    config, base, other = parents("7B")
    made = []
    for name in ("hub hub", layouts):
        first, second = write(tmp_path / name, config, base, other, name)
        merge(slerp_of(first, second, config["num_hidden_layers"], T), tmp_path / name / "out")
        made.append(read(tmp_path / name / "out"))
    assert made[0].keys() == made[1].keys()
    assert all(torch.equal(made[0][key], made[1][key]) for key in made[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    config, base, other = parents("1.2B", dtype)
    first, second = write(tmp_path, config, base, other)
    merge(slerp_of(first, second, config["num_hidden_layers"], T), tmp_path / "out")
    for key, tensor in read(tmp_path / "out").items():
        assert tensor.dtype == dtype
        assert_rounded(tensor, slerp(mean_t(key, config), base[key], other[key]), key)
    merge(slerp_of(first, second, config["num_hidden_layers"], T, dtype="bfloat16"), tmp_path / "cast")
    assert {tensor.dtype for tensor in read(tmp_path / "cast").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "cast" / "config.json").read_text())["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize("shared", ["first", "middle", "separate"])
def test_other_rules(shared: str, tmp_path: Path) -> None:
    config, base, other = parents("7B")
    first, second = write(tmp_path, config, base, other)
    layers = config["num_hidden_layers"]
    merge(slerp_of(first, second, layers, T, shared=shared), tmp_path / "out")
    merged, sharing = read(tmp_path / "out"), SharingMap.from_config(config)
    written = SharingMap.from_config(tmp_path / "out")
    assert sorted(merged) == sorted(written.hub_keys())
    assert written.num_blocks == (len(sharing.hybrid_layers) if shared == "separate" else sharing.num_blocks)
    for key, tensor in merged.items():
        home, uses = sharing.canonical_key(key), used_at(sharing.canonical_key(key), config)
        if shared == "separate":
            layer = written.layer_of(key)
            at = layer if layer is not None else (uses[0] if uses else None)
        else:
            at = uses[0 if shared == "first" else (len(uses) - 1) // 2] if uses else None
        assert_rounded(tensor, slerp(t_at(key, at, layers), base[home], other[home]), key)


def rowwise(t: float, a: Tensor, b: Tensor) -> Tensor:
    """The study's formula in float64."""
    x, y = a.double(), b.double()
    if a.ndim < 2 or a.numel() < 16:
        return (1 - t) * x + t * y
    x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    angle = torch.acos((x * y).sum(1, keepdim=True) / (x.norm(dim=1, keepdim=True) * y.norm(dim=1, keepdim=True)))
    return ((torch.sin((1 - t) * angle) * x + torch.sin(t * angle) * y) / torch.sin(angle)).view(a.shape)


def linear(t: float, a: Tensor, b: Tensor) -> Tensor:
    return (1 - t) * a.double() + t * b.double()


@pytest.mark.parametrize(
    ("method", "parameters", "formula"),
    [
        ("slerp_rowwise", {"t": 0.3}, rowwise),
        ("task_arithmetic", {"weight": 0.5, "lambda": 0.6}, linear),
        ("linear", {"weight": 0.3}, linear),
    ],
)
def test_other_methods(
    method: str, parameters: dict[str, Any], formula: Callable[[float, Tensor, Tensor], Tensor], tmp_path: Path
) -> None:
    config, base, other = parents("1.2B")
    first, second = write(tmp_path, config, base, other)
    words: dict[str, Any] = {"merge_method": method, "base_model": str(first), "parameters": parameters}
    words["models"] = [{"model": str(first)}, {"model": str(second)}]
    if method == "linear":
        words["models"][0]["parameters"] = {"weight": 0.7}
    merge(words, tmp_path / "out")
    for key, tensor in read(tmp_path / "out").items():
        assert_rounded(tensor, formula(0.3, base[key], other[key]), key)


def test_ends_and_untouched_tensors(tmp_path: Path) -> None:
    config, base, other = parents("7B")
    first, second = write(tmp_path, config, base, other)
    layers = config["num_hidden_layers"]
    for t, wanted in ((0, base), (1, other)):
        merge(slerp_of(first, second, layers, t), tmp_path / f"at{t}")
        merged = read(tmp_path / f"at{t}")
        assert all(torch.equal(merged[key], tensor) for key, tensor in wanted.items())
    report = merge(slerp_of(first, second, layers, [{"filter": "self_attn", "value": 0.5}]), tmp_path / "some")
    merged = read(tmp_path / "some")
    same = {key for key in base if torch.equal(merged[key], base[key])}
    assert same == set(report.kept) == {key for key in base if "self_attn" not in key}


def test_vectors_without_an_angle(tmp_path: Path) -> None:
    config, base, _ = parents("1.2B")
    other = {key: tensor * 2 if "q_proj" in key else tensor.clone() for key, tensor in base.items()}
    zero = "model.layers.0.mamba.in_proj.weight"
    other[zero] = torch.zeros_like(other[zero])
    first, second = write(tmp_path, config, base, other)
    report = merge(slerp_of(first, second, config["num_hidden_layers"], 0.5), tmp_path / "out")
    assert set(report.fallbacks["zero"]) == {zero} and len(report.fallbacks["near-parallel"]) == len(base) - 1
    merged = read(tmp_path / "out")
    for key, tensor in base.items():
        if key != zero:
            assert_rounded(merged[key], linear(0.5, tensor, other[key]), key)


@pytest.mark.parametrize(
    ("t", "words"),
    [(1.5, "outside of"), (-0.1, "outside of"), ([0.1, 2], "outside of"), (".nan", "no finite number"),
     ("a", "Write a"), ([{"filter": "mlp", "value": 0.5}], "meant: feed_forward"),
     ([{"filter": "ssm", "value": 0.5}], "meant: mamba")],
)  # fmt: skip
def test_refused(t: Any, words: str, tmp_path: Path) -> None:
    config, base, other = parents("1.2B")
    first, second = write(tmp_path, config, base, other)
    with pytest.raises(ConfigError, match=words):
        merge(slerp_of(first, second, config["num_hidden_layers"], yaml.safe_load(str(t)) if t == ".nan" else t),
              tmp_path / "out")  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_parents_that_do_not_fit(tmp_path: Path) -> None:
    config, base, other = parents("7B")
    layers = config["num_hidden_layers"]
    first, second = write(tmp_path / "a", config, base, synthetic.to_divergent(other, config))
    with pytest.raises(DivergentCopiesError, match="copies that differ"):
        merge(slerp_of(first, second, layers, 0.5), tmp_path / "out")
    merge(slerp_of(first, second, layers, 0.5), tmp_path / "mean", MergeOptions(resolve="mean"))
    smaller, small, _ = parents("1.2B")
    first, second = write(tmp_path / "b", config, base, other)
    synthetic.write_checkpoint(tmp_path / "c", small, smaller)
    with pytest.raises(CheckpointError, match="hybrid layers"):
        words = {"models": [{"model": str(first)}, {"model": str(tmp_path / "c")}], "base_model": str(first)}
        merge({**words, "merge_method": "slerp", "parameters": {"t": 0.5}}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_architectures(tmp_path: Path) -> None:
    """Chosen components of another family, from another layer; everything else stays the base's."""
    shapes = {"self_attn.q_proj.weight": (8, 8), "mlp.up_proj.weight": (16, 8)}
    states = []
    for seed, (name, layers, more) in enumerate((("llama", 2, {}), ("qwen3", 3, {"self_attn.q_norm.weight": (4,)}))):
        torch.manual_seed(seed)
        state = {f"model.layers.{i}.{key}": torch.randn(s) for i in range(layers) for key, s in (shapes | more).items()}
        state["model.embed_tokens.weight"] = torch.randn(10 + seed, 8)
        states.append(state)
        words = {"model_type": name, "architectures": [f"{name}ForCausalLM"], "num_hidden_layers": layers}
        synthetic.write_checkpoint(tmp_path / name, state, words)
    llama, qwen = (str(tmp_path / name) for name in ("llama", "qwen3"))
    mapped = [{"model": llama, "layer_range": [1, 2]}, {"model": qwen, "layer_range": [2, 3]}]
    t = [{"filter": "self_attn.q_proj", "value": 0.3}]
    words = {
        "slices": [{"sources": [{"model": llama, "layer_range": [0, 1]}]}, {"sources": mapped, "parameters": {"t": t}}],
        "merge_method": "slerp",
        "base_model": llama,
        "dtype": "float32",
    }
    report = merge(words, tmp_path / "out")
    merged, q_proj = read(tmp_path / "out"), "model.layers.{}.self_attn.q_proj.weight"
    assert merged.keys() == states[0].keys() and any("q_norm" in warning for warning in report.warnings)
    for key, tensor in states[0].items():
        if key == q_proj.format(1):
            assert_rounded(merged[key], slerp(0.3, tensor, states[1][q_proj.format(2)]), key)
        else:
            assert torch.equal(merged[key], tensor), key


@pytest.mark.parametrize("kind", ["file", "full", "in a file", "source"])
def test_a_dry_run_looks_at_the_destination(kind: str, tmp_path: Path) -> None:
    config, base, other = parents()
    first, second = write(tmp_path, config, base, other)
    words = slerp_of(first, second, config["num_hidden_layers"], 0.5)
    place = {"in a file": tmp_path / "out" / "b", "source": first}.get(kind, tmp_path / "out")
    if kind in ("file", "in a file"):
        (tmp_path / "out").touch()
    elif kind == "full":
        place.mkdir()
        (place / "thesis.tex").touch()
    before = sorted(tmp_path.rglob("*"))
    for dry_run in (True, False):
        with pytest.raises(DestinationError):
            merge(words, place, MergeOptions(dry_run=dry_run))
    assert sorted(tmp_path.rglob("*")) == before


def test_quantized_in_the_same_run(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    config, base, other = parents("7B")
    first, second = write(tmp_path, config, base, other)
    words = slerp_of(first, second, config["num_hidden_layers"], T)
    merge(words, tmp_path / "at once", MergeOptions(quantize="nf4", double_quant=True))
    merge(words, tmp_path / "first")
    convert(tmp_path / "first", tmp_path / "then", Options(quantize="nf4", double_quant=True))
    one, two = read(tmp_path / "at once"), read(tmp_path / "then")
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, base, other = parents("7B")
    first, second = write(tmp_path, config, base, other)
    text = yaml.safe_dump(slerp_of(first, second, config["num_hidden_layers"], T), sort_keys=False)
    (tmp_path / "merge.yml").write_text(text)
    words = ["merge", str(tmp_path / "merge.yml"), str(tmp_path / "out")]
    assert main([*words, "--dry-run", "--explain"]) == 0
    out = capsys.readouterr().out
    assert "planned, nothing is written" in out and "attention" in out and not (tmp_path / "out").exists()
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["written"] and found["tensors"] == len(base)
    assert main(["verify", str(tmp_path / "out"), "-q"]) == 0
    assert (tmp_path / "out" / "mergekit_config.yml").read_text() == text
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model:" in card and "- merge" in card and "merge_method: slerp" in card
    manifest = json.loads((tmp_path / "out" / "zamba_compat_manifest.json").read_text())
    assert len(manifest["sources"]) == 2
    assert main(words) == 3 and "not empty" in capsys.readouterr().err


def test_quality_lies_between_the_parents(tmp_path: Path) -> None:
    """The trained pair: away from a parent its own text costs more, towards the other the other's costs less."""
    from zamba_compat.inference.loading import Loading, load
    from zamba_compat.inference.scoring import perplexity

    texts = {name: (TINY / f"text_{name}.txt").read_text(encoding="utf-8")[:4096] for name in ("base", "tuned")}
    layers = json.loads((TINY / "base" / "config.json").read_text())["num_hidden_layers"]
    costs = []
    for t in (0, 0.25, 0.5, 0.75, 1):
        merge(slerp_of(TINY / "base", TINY / "tuned", layers, t, tokenizer_source="base"), tmp_path / str(t))
        loaded = load(str(tmp_path / str(t)), Loading(load="fp32"))
        costs.append([perplexity(loaded, text).nats for text in texts.values()])
    own, others = zip(*costs, strict=True)
    assert list(own) == sorted(own) and list(others) == sorted(others, reverse=True)
    for name, at in (("base", 0), ("tuned", -1)):
        parent = load(str(TINY / name), Loading(load="fp32"))
        assert [perplexity(parent, text).nats for text in texts.values()] == pytest.approx(costs[at], rel=1e-6)
