"""Zamba2 x Zamba2 by mergekit itself: one value for a shared tensor, any layout, each block once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import overlays
import zamba_compat
from support.merges import assert_merged, curve, read, run, slerp, slerp_of, value
from support.synthetic import (
    Config,
    State,
    forward,
    make_config,
    make_ids,
    make_state,
    to_divergent,
    to_expanded,
    to_partial,
    write_checkpoint,
)
from zamba_compat.errors import CheckpointError, ConfigError, DivergentCopiesError, MissingTensorError
from zamba_compat.layout.sharing import SharingMap
from zamba_compat.operations.merge import merge

STUDY = Path(__file__).parents[2] / "fixtures" / "merges" / "study.yml"
CURVE = [0.1, 0.9, 0.3]
T: list[dict[str, Any]] = [{"filter": "shared_transformer", "value": CURVE}, {"value": 0.5}]


def parents(tmp_path: Path, config: Config, *layouts: str, dtype: torch.dtype = torch.float32) -> list[Path]:
    """The base and the other model, each in a layout."""
    made = []
    for seed, layout in enumerate(layouts):
        state = {key: tensor.to(dtype) for key, tensor in make_state(config, seed).items()}
        made.append(write_checkpoint(tmp_path / f"{seed}-{layout}", stored(state, config, layout), config))
    return made


def stored(state: State, config: Config, layout: str) -> State:
    if layout in ("hub", "expanded"):
        return state if layout == "hub" else to_expanded(state, config)
    return to_partial(state, config, layout)  # type: ignore[arg-type]


def wanted(config: Config, at_layer: Any, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    a, b = make_state(config, 0), make_state(config, 1)
    return {key: slerp(value(key, config, at_layer), a[key].to(dtype), b[key].to(dtype)) for key in a}


def test_the_study_runs_unchanged(mended: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config("7B", full=True)
    for seed, name in enumerate(("Zamba2-7B", "Zamba2-7B-Instruct")):
        state = {key: tensor.bfloat16() for key, tensor in make_state(config, seed).items()}
        write_checkpoint(tmp_path / "Zyphra" / name, state, config)
    monkeypatch.chdir(tmp_path)
    found = run(STUDY.read_text(), tmp_path / "out", write_model_card=False)  # the card asks the hub for the names

    def at_layer(key: str, layer: int) -> float:
        if "self_attn" in key:
            return curve([0.3, 0.5, 0.7, 0.7, 0.5, 0.3], layer, 81)
        if "feed_forward" in key:
            return curve([0.4, 0.6, 0.8, 0.8, 0.6, 0.4], layer, 81)
        return 0.75 if "mamba" in key else 0.5

    assert found.keys() == set(SharingMap.from_config(tmp_path / "out").hub_keys())
    assert_merged(found, wanted(config, at_layer, torch.bfloat16))


@pytest.mark.parametrize("pattern", ["1.2B", "2.7B", "three-blocks", "hybrid-0"])
def test_one_value_for_a_shared_tensor(mended: bool, tmp_path: Path, pattern: str) -> None:
    config = make_config(pattern)
    layers = config["num_hidden_layers"]
    base, other = parents(tmp_path, config, "hub", "hub")
    found = run(slerp_of(base, other, layers, T), tmp_path / "out")

    def at_layer(key: str, layer: int) -> float:
        return curve(CURVE, layer, layers) if "shared_transformer" in key else 0.5

    assert_merged(found, wanted(config, at_layer))


LAYOUTS = ["hub", "expanded", "later-layer", "split", "wrong-slots"]


@pytest.mark.parametrize(
    "layouts", [(a, b) for a in LAYOUTS for b in LAYOUTS if (a, b) != ("hub", "hub")], ids="-x-".join
)
def test_any_layout_gives_the_same_tensors(armed: bool, tmp_path: Path, layouts: tuple[str, str]) -> None:
    config = make_config("2.7B")
    layers = config["num_hidden_layers"]
    same = run(slerp_of(*parents(tmp_path / "hub", config, "hub", "hub"), layers, T), tmp_path / "same")
    found = run(slerp_of(*parents(tmp_path, config, *layouts), layers, T), tmp_path / "out")
    assert found.keys() == same.keys()
    assert all(torch.equal(found[key], same[key]) for key in same)


def test_the_same_as_zamba_compat_merge(armed: bool, tmp_path: Path) -> None:
    config = make_config("7B")
    base, other = parents(tmp_path, config, "expanded", "split", dtype=torch.bfloat16)
    words = slerp_of(base, other, config["num_hidden_layers"], T, dtype="bfloat16")
    found = run(words, tmp_path / "out")
    merge(words, tmp_path / "ours")
    assert_merged(found, {key: tensor.double() for key, tensor in read(tmp_path / "ours").items()})


@pytest.mark.parametrize("layouts", [("hub", "expanded"), ("expanded", "expanded")], ids="-x-".join)
def test_an_expanded_parent_is_merged(mended: bool, tmp_path: Path, layouts: tuple[str, str]) -> None:
    config = make_config("7B")
    found = run(slerp_of(*parents(tmp_path, config, *layouts), config["num_hidden_layers"], 0.4), tmp_path / "out")
    assert_merged(found, wanted(config, lambda key, layer: 0.4))


def test_the_output_loads_in_stock_transformers(armed: bool, tmp_path: Path) -> None:
    config = make_config("7B", time_step_min=1e-9)  # by itself transformers clamps time steps there
    base, other = parents(tmp_path, config, "expanded", "later-layer")
    found = run(slerp_of(base, other, config["num_hidden_layers"], T), tmp_path / "out")
    code = (
        "import sys, torch; from transformers import AutoModelForCausalLM\n"
        "load = AutoModelForCausalLM.from_pretrained\n"
        "model, report = load(sys.argv[1], dtype=torch.float32, output_loading_info=True)\n"
        "assert 'zamba_compat' not in sys.modules\n"
        "assert not report['missing_keys'] and not report['unexpected_keys'], report\n"
        "with torch.no_grad(): torch.save(model.eval()(torch.load(sys.argv[2])).logits, sys.argv[3])\n"
    )
    ids, logits = make_ids(config, 16), tmp_path / "logits"
    torch.save(ids, tmp_path / "ids")
    command = [sys.executable, "-c", code, str(tmp_path / "out"), str(tmp_path / "ids"), str(logits)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    right = forward(found, config, ids)
    assert (torch.load(logits).double() - right).norm() < 2e-5 * right.norm()


def test_pieces_of_a_model_are_the_model(armed: bool, tmp_path: Path) -> None:
    """Each slice has a t of its own: a block that is used in both gets the mean over its layers."""
    config = make_config("7B")
    layers, cut = config["num_hidden_layers"], 6
    base, other = parents(tmp_path, config, "hub", "expanded")
    words = slerp_of(base, other, layers, 0.0)
    words["slices"] = [
        {
            "sources": [{"model": str(model), "layer_range": part} for model in (base, other)],
            "parameters": {"t": t},
        }
        for part, t in (([0, cut], 0.2), ([cut, layers], 0.7))
    ]
    found = run(words, tmp_path / "out")

    def at_layer(key: str, layer: int) -> float:
        return 0.7 if layer >= cut or "final_layernorm" in key else 0.2

    assert_merged(found, wanted(config, at_layer))


def test_a_layer_that_keeps_the_base_counts_as_zero(armed: bool, tmp_path: Path) -> None:
    config = make_config("7B")
    layers, cut = config["num_hidden_layers"], 6
    base, other = parents(tmp_path, config, "hub", "hub")
    words = slerp_of(base, other, layers, 0.6)
    both = [{"model": str(model), "layer_range": [0, cut]} for model in (base, other)]
    words["slices"] = [{"sources": both}, {"sources": [{"model": str(base), "layer_range": [cut, layers]}]}]
    found = run(words, tmp_path / "out")

    def at_layer(key: str, layer: int) -> float:
        return 0.0 if layer >= cut or "final_layernorm" in key else 0.6

    assert_merged(found, wanted(config, at_layer))


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_weights_of_other_methods_follow_the_rule(armed: bool, tmp_path: Path, method: str) -> None:
    config = make_config("2.7B")
    layers = config["num_hidden_layers"]
    base, other = parents(tmp_path, config, "hub", "expanded")
    words: dict[str, Any] = {
        "models": [{"model": str(other), "parameters": {"weight": CURVE}}],
        "merge_method": method,
        "base_model": str(base),
    }
    if method == "linear":
        words["models"].insert(0, {"model": str(base), "parameters": {"weight": 1.0}})
    found = run(words, tmp_path / "out")
    a, b = make_state(config, 0), make_state(config, 1)
    right = {}
    for key in a:
        weight = value(key, config, lambda key, layer: curve(CURVE, layer, layers))
        x, y = a[key].double(), b[key].double()
        right[key] = (x + weight * y) / (1 + weight) if method == "linear" else x + weight * (y - x)
    assert found.keys() == right.keys()
    for key, tensor in found.items():
        assert (tensor.double() - right[key]).norm() <= 1e-6 * right[key].norm(), key


def test_an_untied_head_is_merged(armed: bool, tmp_path: Path) -> None:
    config = make_config("1.2B", tie_word_embeddings=False)
    made, right = [], wanted(config, lambda key, layer: 0.4)
    for seed in (0, 1):
        state = make_state(config, seed)
        state["lm_head.weight"] = state["model.embed_tokens.weight"].flip(0)
        made.append(write_checkpoint(tmp_path / str(seed), to_expanded(state, config), config))
    right["lm_head.weight"] = right["model.embed_tokens.weight"].flip(0)
    assert_merged(run(slerp_of(*made, config["num_hidden_layers"], 0.4), tmp_path / "out"), right)


@pytest.mark.parametrize("layout", ["hub", "expanded"])
def test_shards_and_pickles_are_read(armed: bool, tmp_path: Path, layout: str) -> None:
    config = make_config("2.7B")
    base, other = (stored(make_state(config, seed), config, layout) for seed in (0, 1))
    write_checkpoint(tmp_path / "a", base, config, max_shard_size=100_000)
    write_checkpoint(tmp_path / "b", other, config, max_shard_size=100_000, format="bin")
    found = run(slerp_of(tmp_path / "a", tmp_path / "b", config["num_hidden_layers"], 0.4), tmp_path / "out")
    assert_merged(found, wanted(config, lambda key, layer: 0.4))


def test_layers_left_out_or_moved_are_refused(armed: bool, tmp_path: Path) -> None:
    config = make_config("7B")
    layers = config["num_hidden_layers"]
    base, other = parents(tmp_path, config, "hub", "hub")
    ranges: list[list[list[int]]] = [
        [[0, layers - 1], [0, layers - 1]],
        [[1, layers], [0, layers - 1]],
        [[1, layers], [1, layers]],
    ]
    for number, pair in enumerate(ranges):
        words = slerp_of(base, other, layers, 0.4)
        for source, part in zip(words["slices"][0]["sources"], pair, strict=True):
            source["layer_range"] = part
        with pytest.raises(ConfigError, match=r"layer_range: \[0, 11\]"):
            run(words, tmp_path / f"out{number}")
        assert not list((tmp_path / f"out{number}").glob("*.safetensors"))


def test_parents_of_two_shapes_are_refused(armed: bool, tmp_path: Path) -> None:
    first, second = make_config("7B"), make_config("2.7B", mamba_ngroups=2)
    base = write_checkpoint(tmp_path / "a", make_state(first, 0), first)
    other = write_checkpoint(tmp_path / "b", make_state(second, 1), second)
    with pytest.raises(ConfigError, match="hybrid layers, blocks or tied embeddings"):
        run(slerp_of(base, other, first["num_hidden_layers"], 0.4), tmp_path / "out")


def test_parents_that_cannot_be_merged_are_refused(armed: bool, tmp_path: Path) -> None:
    config = make_config("7B")
    base = parents(tmp_path, config, "hub")[0]
    state = make_state(config, 1)
    divergent = write_checkpoint(tmp_path / "divergent", to_divergent(state, config), config)
    shared = next(key for key in state if "shared_transformer.self_attn.q_proj" in key)
    lacking = write_checkpoint(tmp_path / "lacking", {k: t for k, t in state.items() if k != shared}, config)
    words = {**config, "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    quantized = write_checkpoint(tmp_path / "quantized", state, words)
    for other, kind, message in (
        (divergent, DivergentCopiesError, "--resolve mean"),
        (lacking, MissingTensorError, "q_proj"),
        (quantized, CheckpointError, "quantized"),
    ):
        with pytest.raises(kind, match=message):
            run(slerp_of(base, other, config["num_hidden_layers"], 0.4), tmp_path / f"out-{other.name}")


def test_arming_after_mergekit_and_disarming(tmp_path: Path) -> None:
    from mergekit import architecture

    zamba_compat.install()
    assert "Zamba2ForCausalLM" in architecture.NAME_TO_ARCH
    zamba_compat.uninstall()
    try:
        assert "Zamba2ForCausalLM" not in architecture.NAME_TO_ARCH
    finally:
        zamba_compat.install()
    states = {adapter.name: adapter.state for adapter in zamba_compat.status() if adapter.library == "mergekit"}
    assert len(states) == 5 and set(states.values()) == {"applied"}


IMPORT = ["-c", "import zamba_compat\nfrom mergekit.scripts.run_yaml import main\nmain()"]


@pytest.mark.slow
@pytest.mark.parametrize("way", [IMPORT, ["-m", "zamba_compat", "run", "--", "mergekit-yaml"]], ids=["import", "run"])
def test_the_command(way: list[str], tmp_path: Path) -> None:
    """As people run it, in a process of its own, tokenizer and card included."""
    tiny = Path(__file__).parents[2] / "fixtures" / "tiny"
    config = tmp_path / "config.yml"
    lines = STUDY.read_text().replace("81", "9")
    config.write_text(
        lines.replace("Zyphra/Zamba2-7B-Instruct", str(tiny / "tuned")).replace("Zyphra/Zamba2-7B", str(tiny / "base"))
    )
    out, folders = tmp_path / "out", overlays.mergekit()
    env = overlays.environment(folders)
    env["PATH"] = f"{folders[0] / 'bin'}{os.pathsep}{env['PATH']}"
    command = [sys.executable, *way, str(config), str(out), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert set(read(out)) == set(SharingMap.from_config(out).hub_keys())
    names = {file.name for file in out.iterdir()}
    assert {"config.json", "tokenizer.json", "README.md", "mergekit_config.yml"} <= names
