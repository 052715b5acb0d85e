"""Of two architectures the base's is taken, in every run; the request's Llama x Qwen example runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from support.merges import assert_merged, read, run, slerp
from support.others import write_model

LLAMA, QWEN = "TsinghuaC3I/Llama-3-8B-UltraMedical", "Intelligent-Internet/II-Medical-8B"
PARTS = [f"self_attn.{part}_proj.weight" for part in "qkvo"]


def test_the_base_decides_whatever_the_names_are(mended: bool, tmp_path: Path) -> None:
    """Sixteen pairs of names: a set's order depends on them and on the process."""
    from mergekit.architecture import get_architecture_info
    from mergekit.config import MergeConfiguration
    from mergekit.options import MergeOptions

    models = {"llama": write_model(tmp_path / "llama", "llama", 0), "qwen3": write_model(tmp_path / "qwen", "qwen3", 1)}
    for number in range(16):
        names = [tmp_path / f"{kind}-{number}" for kind in models]
        for name, model in zip(names, models.values(), strict=True):
            name.symlink_to(model)
        for base in names:
            words = {"merge_method": "slerp", "base_model": str(base), "parameters": {"t": 0.5}}
            words["models"] = [{"model": str(name)} for name in names]
            config = MergeConfiguration.model_validate(words)
            found = get_architecture_info(config, MergeOptions(allow_crimes=True))
            assert base.name.startswith(found.expected_model_type)


def test_the_order_written_without_a_base(mended: bool) -> None:
    from mergekit.config import MergeConfiguration

    for number in range(16):
        names = [f"some/model-{number}-{letter}" for letter in "cab"]
        words = {"merge_method": "linear", "models": [{"model": name} for name in names]}
        models = MergeConfiguration.model_validate(words).referenced_models()
        assert [str(model) for model in models] == names


def test_llama_x_qwen(mended: bool, tmp_path: Path, monkeypatch: Any) -> None:
    """The request's configuration to the letter: layers paired across depths, single-source slices, some tensors."""
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / LLAMA, "llama", 0, num_hidden_layers=17)
    write_model(tmp_path / QWEN, "qwen3", 1, num_hidden_layers=19, intermediate_size=56, vocab_size=80)
    slices = []
    for layer in range(17):
        pair = {0: 0, 16: 18}.get(layer)
        sources = [{"model": LLAMA, "layer_range": [layer, layer + 1]}]
        t: list[dict[str, Any]] = [{"value": 0.0}]
        if pair is not None:
            sources.append({"model": QWEN, "layer_range": [pair, pair + 1]})
            t = [{"filter": part, "value": 0.3} for part in PARTS]
        slices.append({"sources": sources, "parameters": {"t": t}})
    words = {"merge_method": "slerp", "base_model": LLAMA, "dtype": "bfloat16", "slices": slices}
    found = run(words, tmp_path / "out", allow_crimes=True, write_model_card=False)

    base, other = read(tmp_path / LLAMA), read(tmp_path / QWEN)
    wanted = {key: tensor.bfloat16().double() for key, tensor in base.items()}
    for layer, pair in ((0, 0), (16, 18)):
        for part in PARTS:
            key, match = f"model.layers.{layer}.{part}", f"model.layers.{pair}.{part}"
            wanted[key] = slerp(0.3, base[key].bfloat16(), other[match].bfloat16())
    assert_merged(found, wanted)
    assert all(tensor.dtype == torch.bfloat16 for tensor in found.values())


def test_crimes_still_have_to_be_allowed(either: bool, tmp_path: Path) -> None:
    models = [write_model(tmp_path / kind, kind, 0) for kind in ("llama", "qwen3")]
    words = {"merge_method": "slerp", "base_model": str(models[0]), "parameters": {"t": 0.5}}
    words["models"] = [{"model": str(model)} for model in models]
    try:
        run(words, tmp_path / "out")
    except RuntimeError as error:
        assert "allow-crimes" in str(error)
    else:
        raise AssertionError("two architectures were mixed unasked")
