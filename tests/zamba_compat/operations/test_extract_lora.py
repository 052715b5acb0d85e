"""extract-lora: the factors, and which tensors get some, in every layout; what PEFT makes of it is in another file."""

from __future__ import annotations

import gc
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from support import synthetic
from support.merges import parents, write
from zamba_compat.cli.main import main
from zamba_compat.errors import CheckpointError, ConfigError, DestinationError, DivergentCopiesError, ZambaCompatError
from zamba_compat.extraction.factors import factorize
from zamba_compat.layout.sharing import SharingMap
from zamba_compat.operations import extract_lora as module
from zamba_compat.operations.extract_lora import ExtractOptions, extract_lora
from zamba_compat.operations.verify import verify

PREFIX = "base_model.model."


def matrix(rows: int, columns: int, decay: float) -> Tensor:
    """Singular values 1, decay, decay^2, ..."""
    generator = torch.Generator().manual_seed(rows)
    short = min(rows, columns)
    left, right = (torch.linalg.qr(torch.randn(n, short, generator=generator).double()).Q for n in (rows, columns))
    made: Tensor = (left * decay ** torch.arange(short).double()) @ right.T
    return made.float()


@pytest.mark.parametrize("shape", [(90, 40), (40, 90), (50, 50)])
@pytest.mark.parametrize("rank", [1, 7, 40])
def test_the_closest_matrix_of_a_rank(shape: tuple[int, int], rank: int) -> None:
    base, difference = torch.randn(shape, generator=torch.Generator().manual_seed(1)), matrix(*shape, 0.9)
    found = factorize(base, base + difference, rank)
    exact = (base + difference).double() - base.double()
    u, s, v = torch.linalg.svd(exact, full_matrices=False)
    wanted = (u[:, :rank] * s[:rank]) @ v[:rank]
    assert found.down.shape == (rank, shape[1]) and found.up.shape == (shape[0], rank)
    assert torch.allclose(found.up.double() @ found.down.double(), wanted, atol=1e-5)
    assert found.kept == pytest.approx(s[:rank].square().sum().item(), rel=1e-5)
    assert found.total == pytest.approx(exact.square().sum().item(), rel=1e-6)
    assert torch.allclose(found.up.norm(dim=0), found.down.norm(dim=1), rtol=1e-3)  # each carries the root


@pytest.mark.parametrize("shape", [(400, 300), (300, 400)])
@pytest.mark.parametrize("decay", [0.8, 0.98, 0.999])
def test_iterations_keep_what_the_whole_decomposition_keeps(shape: tuple[int, int], decay: float) -> None:
    base, tuned = torch.zeros(shape), matrix(*shape, decay)
    whole, fast = (factorize(base, tuned, 12, exact=exact) for exact in (True, False))
    assert 0.995 * whole.kept <= fast.kept <= whole.kept * (1 + 1e-6)
    left = (tuned.double() - fast.up.double() @ fast.down.double()).square().sum().item()
    assert left == pytest.approx(fast.total - fast.kept, rel=1e-3, abs=1e-6)  # what is said to be kept is
    assert torch.equal(fast.up, factorize(base, tuned, 12, exact=False).up)


def test_no_difference_in_one_matrix_and_nan() -> None:
    same = factorize(torch.ones(4, 3), torch.ones(4, 3), 2)
    assert same.total == same.kept == 0 and not same.up.any() and not same.down.any()
    with pytest.raises(CheckpointError, match="NaN"):
        factorize(torch.ones(4, 3), torch.full((4, 3), torch.nan), 2, where="x")


def extract(folder: Path, rank: int = 4, layouts: str = "hub hub", pattern: str = "7B", **options: Any) -> Any:
    config, base, other = parents(pattern)
    first, second = write(folder, config, base, other, layouts)
    report = extract_lora(first, second, folder / "out", ExtractOptions(rank, **options))
    return (
        report,
        load_file(folder / "out" / "adapter_model.safetensors"),
        json.loads((folder / "out" / "adapter_config.json").read_text()),
    )


@pytest.mark.parametrize("pattern", ["1.2B", "7B", synthetic.ZAMBA1])
def test_names_and_energy(pattern: str, tmp_path: Path) -> None:
    config, base, other = parents(pattern)
    report, tensors, words = extract(tmp_path, 10_000, pattern=pattern, dtype="float32")
    sharing = SharingMap.from_config(config)
    total = adapted = 0.0
    linear = set()
    for key in base:
        moved = (other[key].double() - base[key].double()).square().sum().item()
        total += moved
        name = key.removesuffix(".weight")
        last = name.rpartition(".")[2]
        if not (last.endswith("_proj") or last == "linear" or "_adapter_list." in name):
            assert not any(f".{place}.lora_" in stored for place in [name] for stored in tensors)
            continue
        adapted += moved
        shared = sharing.parse(key)
        places = sharing.aliases(key)
        if shared is not None and shared.adapter is not None:
            places = (key, sharing.at_layer(key, sharing.positions[shared.adapter].layer))
        for place in places:
            linear.add(place)
            down, up = (tensors[f"{PREFIX}{place.removesuffix('.weight')}.lora_{x}.weight"] for x in "AB")
            assert len(down) == min(base[key].shape)
            difference = other[key].double() - base[key].double()
            assert (up.double() @ down.double() - difference).norm() <= 1e-5 * difference.norm()
    assert len(tensors) == 2 * len(linear) == report.tensors
    assert report.total.total == pytest.approx(total, rel=1e-6)
    assert report.total.adapted == pytest.approx(adapted, rel=1e-6) and report.total.saved == 0
    assert report.total.left == len(report.left) and "model.embed_tokens.weight" in report.left
    assert {"embed_tokens", "mamba", "final_layernorm"} <= set(report.words)
    assert words["r"] == words["lora_alpha"] == 10_000 and words["rank_pattern"] == words["alpha_pattern"]
    assert verify(tmp_path / "out").ok
    assert "lora" in (tmp_path / "out" / "README.md").read_text()


def test_layouts_change_nothing(tmp_path: Path) -> None:
    config, base, other = parents("7B")
    wanted = extract(tmp_path / "hub")[1]
    first = synthetic.write_checkpoint(tmp_path / "a", synthetic.to_expanded(base, config), config)
    for kind in ("later-layer", "split", "wrong-slots"):
        second = tmp_path / kind
        synthetic.write_checkpoint(second, synthetic.to_partial(other, config, kind), config, max_shard_size=100_000)  # type: ignore[arg-type]
        extract_lora(first, second, tmp_path / "out", ExtractOptions(4, overwrite=True))
        found = load_file(tmp_path / "out" / "adapter_model.safetensors")
        assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_choice_of_modules(tmp_path: Path) -> None:
    report, tensors, words = extract(tmp_path / "a", target_modules=("mamba",), exclude=(r"layers\.[02]\.",))
    assert not any(".layers.0." in name or "self_attn" in name for name in tensors)
    assert all(".mamba." in name for name in tensors)
    assert {name.rpartition(".")[2] for name in words["target_modules"]} == {"in_proj", "out_proj"}
    assert all(name.startswith("layers.") for name in words["target_modules"])  # not all of a kind: by full names
    assert any("q_proj" in name for name in report.left)
    _, tensors, words = extract(tmp_path / "b", include=("self_attn",))
    assert words["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert all(tensor.dtype == torch.bfloat16 for tensor in tensors.values())


def test_saved_whole(tmp_path: Path) -> None:
    config, _, other = parents("7B")
    report, tensors, words = extract(tmp_path, modules_to_save=("embed_tokens", "norm"))
    assert words["modules_to_save"] == ["embed_tokens", "norm", "lm_head"]
    sharing = SharingMap.from_config(config)
    saved = {name.removeprefix(PREFIX) for name in tensors if ".lora_" not in name}
    norms = {alias for key in other if key.endswith("norm.weight") for alias in sharing.aliases(key)}
    assert saved == norms | {"model.embed_tokens.weight", "lm_head.weight"}
    assert torch.equal(tensors[PREFIX + "lm_head.weight"], other["model.embed_tokens.weight"])
    for name in norms:
        assert torch.equal(tensors[PREFIX + name], other[sharing.canonical_key(name)])
    assert report.total.saved > 0 and report.components["norms"].kept == 1 and "conv1d" not in report.words


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"target_modules": ("conv1d",)}, "fused Mamba kernels"),
        ({"target_modules": ("q_prj",)}, "Was q_proj meant"),
        ({"modules_to_save": ("A_log",)}, "no module 'A_log'"),
        ({"modules_to_save": ("mamba", "conv1d")}, "inside of mamba"),
        ({"include": ("nothing",)}, "No module is left"),
        ({"exclude": ("(",)}, "no regular expression"),
        ({"rank": 0}, "no rank"),
        ({"per_position": True, "resolve": "mean"}, "tied again"),
    ],
)
def test_refused_words(options: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, CheckpointError), match=match) as caught:
        extract(tmp_path, **options)
    assert caught.value.remedy and not (tmp_path / "out").exists()


def test_refused_checkpoints(tmp_path: Path) -> None:
    config, base, other = parents("7B")
    first, second = write(tmp_path, config, base, other)
    out, options = tmp_path / "out", ExtractOptions(4)
    with pytest.raises(CheckpointError, match="equal"):
        extract_lora(first, first, out, options)
    heads = synthetic.write_checkpoint(tmp_path / "h", other, {**config, "num_attention_heads": 2})
    with pytest.raises(ZambaCompatError, match=r"num_attention_heads|shape|head"):
        extract_lora(first, heads, out, options)
    another, state, _ = parents("1.2B")
    with pytest.raises(CheckpointError, match="hybrid ones"):
        extract_lora(first, synthetic.write_checkpoint(tmp_path / "x", state, another), out, options)
    apart = synthetic.write_checkpoint(tmp_path / "d", synthetic.to_divergent(other, config), config)
    with pytest.raises(DivergentCopiesError):
        extract_lora(first, apart, out, options)
    untied = synthetic.write_checkpoint(
        tmp_path / "u", *synthetic.to_untied(synthetic.to_expanded(other, config), config)
    )
    with pytest.raises(CheckpointError, match="shared blocks"):
        extract_lora(first, untied, out, options)
    with pytest.raises(DestinationError, match="source"):
        extract_lora(first, second, first / "out", options)
    only = {**base, "model.embed_tokens.weight": other["model.embed_tokens.weight"]}
    with pytest.raises(CheckpointError, match="None of the modules to adapt differs"):
        extract_lora(first, synthetic.write_checkpoint(tmp_path / "e", only, config), out, options)
    broken = {**other, "model.layers.0.mamba.in_proj.weight": other["model.layers.0.mamba.in_proj.weight"] * torch.nan}
    with pytest.raises(CheckpointError, match="NaN"):
        extract_lora(first, synthetic.write_checkpoint(tmp_path / "n", broken, config), out, options)
    assert not out.exists() and not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_killed_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, base, other = parents("7B")
    first, second = write(tmp_path, config, base, other)
    child = os.fork()
    if not child:
        calls = []

        def die(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            if len(calls) == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            return factorize(*args, **kwargs)

        monkeypatch.setattr(module, "factorize", die)
        extract_lora(first, second, tmp_path / "out", ExtractOptions(4))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    extract_lora(first, second, tmp_path / "out", ExtractOptions(4))
    names = {"adapter_config.json", "adapter_model.safetensors", "README.md", "zamba_compat_manifest.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_one_matrix_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        alive.append(sum(isinstance(one, Tensor) for one in gc.get_objects()))
        return factorize(*args, **kwargs)

    monkeypatch.setattr(module, "factorize", counted)
    gc.collect()
    extract(tmp_path)
    assert len(alive) > 20 and max(alive) <= alive[0] + 2  # the factors of one matrix, until the next ones are there


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, base, other = parents("7B")
    words = ["extract-lora", *map(str, write(tmp_path, config, base, other)), str(tmp_path / "out"), "--rank", "4"]
    assert main([*words, "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert not planned["written"] and not (tmp_path / "out").exists()
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "not carried" in said and "--modules-to-save" in said and "attention" in said
    assert main([*words, "--overwrite", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["bytes"] == planned["bytes"] and report["target_modules"] == planned["target_modules"]
    assert 0 < report["total"]["kept"] < 1 and report["components"]["attention"]["kept"] > 0
    assert main([*words[:-1], "0"]) == 2
