"""convert: any layout in, any layout out, nothing half done. Rows of bad input carry the row's number in their name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from support import synthetic
from support.reference import forward, relative_difference
from support.synthetic import Config, State
from zamba_compat.errors import (
    CheckpointError,
    ConfigError,
    DestinationError,
    DivergentCopiesError,
    MissingTensorError,
    ZambaCompatError,
)
from zamba_compat.operations.convert import Options, Report, convert

CONFIG = synthetic.make_config("7B")
STATE = synthetic.make_state(CONFIG, dtype=torch.bfloat16)
STEM = "model.layers.{}.shared_transformer."
Q = f"{STEM}self_attn.q_proj.weight"
FIRST, LATER = Q.format(2), Q.format(5)


def read(directory: Path) -> State:
    return {name: t for file in sorted(directory.glob("*.safetensors")) for name, t in load_file(file).items()}


def read_config(directory: Path) -> Config:
    config: Config = json.loads((directory / "config.json").read_text())
    return config


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def files(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Report]:
    """Write a checkpoint to "source" and convert it to "made"."""

    def write_and_convert(state: State = STATE, config: Config = CONFIG, **options: Any) -> Report:
        synthetic.write_checkpoint(tmp_path / "source", state, config)
        return convert(tmp_path / "source", tmp_path / "made", Options(**options))

    return write_and_convert


# ---- what it makes


@st.composite
def models(draw: st.DrawFn) -> Config:
    """A small Zamba2 config: layers, hybrid layers, blocks, adapters."""
    layers = draw(st.integers(1, 6))
    hybrid = sorted(draw(st.sets(st.integers(0, layers - 1), min_size=1)))
    return synthetic.make_config(
        "7B",
        layers_block_type=["hybrid" if layer in hybrid else "mamba" for layer in range(layers)],
        num_mem_blocks=draw(st.integers(1, len(hybrid))),
        use_shared_attention_adapter=draw(st.booleans()),
        mamba_ngroups=draw(st.sampled_from([1, 2])),
        adapter_rank=draw(st.integers(1, 3)),
        hidden_size=16,
        n_mamba_heads=4,
        vocab_size=8,
    )


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=models(), dtype=st.sampled_from([torch.float32, torch.bfloat16]), size=st.integers(3_000, 40_000))
def test_round_trips(config: Config, dtype: torch.dtype, size: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Expand, then convert: the identity. Convert twice: as once. Any shard size: the same tensors."""
    top = tmp_path_factory.mktemp("round")
    state = synthetic.make_state(config, dtype=dtype)
    synthetic.write_checkpoint(top / "hub", state, config)
    convert(top / "hub", top / "expanded", Options(layout="expanded", max_shard_size=str(size)))
    assert same(read(top / "expanded"), synthetic.to_expanded(state, config))
    convert(top / "expanded", top / "again")
    assert same(read(top / "again"), state)
    assert read_config(top / "again") == read_config(top / "hub")
    convert(top / "again", top / "twice")
    once, twice = files(top / "again"), files(top / "twice")
    del once["zamba_compat_manifest.json"], twice["zamba_compat_manifest.json"]  # it names what it was made from
    assert once == twice
    convert(top / "again", top / "sharded", Options(max_shard_size=str(size)))
    assert same(read(top / "sharded"), state)


@pytest.mark.parametrize("kind", ["later-layer", "split", "wrong-slots"])
def test_partial_layouts_become_the_hub_layout(kind: Any, run: Callable[..., Report], tmp_path: Path) -> None:
    report = run(synthetic.to_partial(STATE, CONFIG, kind))
    assert report.source_layout == "partial" and report.written
    assert same(read(tmp_path / "made"), STATE)


def test_the_report(run: Callable[..., Report]) -> None:
    report = run(synthetic.to_expanded(STATE, CONFIG), max_shard_size="100KB")
    size = sum(tensor.nbytes for tensor in STATE.values())
    assert (report.source_layout, report.options.layout) == ("expanded", "hub")
    assert (report.tensors, report.bytes) == (len(STATE), size)
    assert report.tensors_stored > report.tensors and report.bytes_stored > report.bytes
    assert sum(report.shards.values()) == size and len(report.shards) > 3
    assert not report.divergences and not report.config and not report.warnings
    assert 0 < report.peak_memory < 1e9
    assert json.loads(json.dumps(report.as_dict()))["options"]["layout"] == "hub"


def test_a_dry_run_writes_nothing(run: Callable[..., Report], tmp_path: Path) -> None:
    report = run(synthetic.to_divergent(STATE, CONFIG), resolve="absorb", dry_run=True)
    assert not report.written and report.residuals and report.shards
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_dry_run_looks_at_the_destination(run: Callable[..., Report], tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "thesis.tex").touch()
    with pytest.raises(DestinationError, match="not empty"):
        run(STATE, dry_run=True)
    assert run(STATE, dry_run=True, overwrite=True).shards
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dtype(dtype: str, run: Callable[..., Report], tmp_path: Path) -> None:
    report = run(synthetic.to_expanded(STATE, CONFIG), dtype=dtype)
    wanted = {name: tensor.to(getattr(torch, dtype)) for name, tensor in STATE.items()}
    assert same(read(tmp_path / "made"), wanted)
    assert read_config(tmp_path / "made")["torch_dtype"] == dtype
    assert report.config == ({} if dtype == "bfloat16" else {"torch_dtype": ("bfloat16", dtype)})


def test_dtype_of_tied_copies_and_adapters(run: Callable[..., Report], tmp_path: Path) -> None:
    run(synthetic.to_divergent(STATE, CONFIG), dtype="float32", resolve="absorb", adapter_rank=12)
    made = read(tmp_path / "made")
    assert {tensor.dtype for tensor in made.values()} == {torch.float32}
    assert read_config(tmp_path / "made")["adapter_rank"] == 12


@pytest.mark.parametrize("choice", ["untie", "first", "mean", "karcher", "absorb"])
def test_copies_that_differ(choice: str, run: Callable[..., Report], tmp_path: Path) -> None:
    state = synthetic.make_state(CONFIG)
    divergent = synthetic.to_divergent(state, CONFIG, scale=0.05)
    report = run(divergent, resolve=choice)
    assert report.source_layout == "divergent" and len(report.residuals) == len(report.divergences) == 16
    untied, untied_config = synthetic.to_untied(divergent, CONFIG)
    made, config = read(tmp_path / "made"), read_config(tmp_path / "made")
    ids = synthetic.make_ids(CONFIG, 20)
    apart = relative_difference(forward(made, config, ids), forward(untied, untied_config, ids))
    assert apart == 0 if choice == "untie" else 1e-4 < apart < 0.2
    assert (made.keys() == untied.keys()) == (choice == "untie")
    assert "copies that differ" in (tmp_path / "made" / "README.md").read_text()


def test_the_untied_layout_keeps_what_differs(run: Callable[..., Report], tmp_path: Path) -> None:
    divergent = synthetic.to_divergent(STATE, CONFIG)
    run(divergent, layout="untied")
    untied, config = synthetic.to_untied(divergent, CONFIG)
    assert same(read(tmp_path / "made"), untied)
    assert read_config(tmp_path / "made")["num_mem_blocks"] == config["num_mem_blocks"]
    assert convert(tmp_path / "made", tmp_path / "again").source_layout == "untied"


@pytest.mark.parametrize("layout", ["zyphra-fork", "zyphra-native"])
@pytest.mark.parametrize("pattern", synthetic.PUBLISHED)
def test_zyphra_layouts(layout: str, pattern: str, tmp_path: Path) -> None:
    config = synthetic.make_config(pattern, intermediate_size=256, n_mamba_heads=2)
    state = synthetic.make_state(config)
    synthetic.write_checkpoint(tmp_path / "hub", state, config)
    convert(tmp_path / "hub", tmp_path / "theirs", Options(layout=layout, format="safetensors"))
    assert convert(tmp_path / "theirs", tmp_path / "back").source_layout == layout
    assert same(read(tmp_path / "back"), state)
    convert(tmp_path / "back", tmp_path / "again", Options(layout=layout, format="safetensors"))
    assert same(read(tmp_path / "again"), read(tmp_path / "theirs"))
    assert read_config(tmp_path / "again") == read_config(tmp_path / "theirs")


@pytest.mark.parametrize("layout", ["zyphra-fork", "zyphra-native"])
@pytest.mark.parametrize("pattern", synthetic.PUBLISHED)
def test_adapters_that_no_position_uses_can_be_kept(layout: str, pattern: str, tmp_path: Path) -> None:
    """Then there and back is the identity, with two blocks too."""
    config = synthetic.make_config(pattern, intermediate_size=256, n_mamba_heads=2)
    state = synthetic.make_state(config)
    synthetic.write_checkpoint(tmp_path / "hub", state, config)
    convert(tmp_path / "hub", tmp_path / "zeros", Options(layout=layout, format="safetensors"))
    theirs = read(tmp_path / "zeros")
    unused = [name for name, tensor in theirs.items() if not tensor.any()]
    assert bool(unused) == (config["num_mem_blocks"] > 1)
    theirs |= {name: torch.randn_like(theirs[name]) for name in unused}
    synthetic.write_checkpoint(tmp_path / "theirs", theirs, read_config(tmp_path / "zeros"))

    keep = {"keep_unused_adapters": True}
    convert(tmp_path / "theirs", tmp_path / "kept", Options(**keep))
    kept = read(tmp_path / "kept")
    assert len(kept) == len(state) + len(unused) and same({name: kept[name] for name in state}, state)
    convert(tmp_path / "kept", tmp_path / "again", Options(**keep))
    assert same(read(tmp_path / "again"), kept)
    convert(tmp_path / "kept", tmp_path / "back", Options(layout=layout, format="safetensors", **keep))
    assert same(read(tmp_path / "back"), theirs)
    convert(tmp_path / "kept", tmp_path / "dropped")
    assert same(read(tmp_path / "dropped"), state)


@pytest.mark.parametrize("layout", ["expanded", "untied"])
def test_unused_adapters_have_no_place_in_other_layouts(layout: str) -> None:
    with pytest.raises(CheckpointError, match=f"{layout} layout has no place"):
        Options(layout=layout, keep_unused_adapters=True)


def test_what_lies_beside_the_weights_is_copied(run: Callable[..., Report], tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    beside = {"tokenizer.json": "{}", "generation_config.json": "{ }", "chat_template.jinja": "x"}
    for name, content in beside.items():
        (tmp_path / "source" / name).write_text(content)
    card = "---\nlicense: apache-2.0\n---\n# Caf\u00e9\n"
    (tmp_path / "source" / "README.md").write_text(card, encoding="utf-8")
    run(synthetic.to_expanded(STATE, CONFIG))
    made = tmp_path / "made"
    assert {name: (made / name).read_text() for name in beside} == beside
    text = (made / "README.md").read_text(encoding="utf-8")
    assert text.startswith(card) and "From the expanded to the hub layout" in text
    others = {"README.md", "config.json", "model.safetensors", "zamba_compat_manifest.json"}
    assert {path.name for path in made.iterdir()} == beside.keys() | others
    manifest = json.loads((made / "zamba_compat_manifest.json").read_text())
    assert manifest["tensors"].keys() == STATE.keys() and manifest["options"]["layout"] == "hub"


def test_progress(tmp_path: Path) -> None:
    class Bar:
        def __init__(self, what: str, total: int) -> None:
            self.what, self.total, self.done, self.closed = what, total, 0, False
            bars.append(self)

        def update(self, n: int) -> None:
            self.done += n

        def close(self) -> None:
            self.closed = True

    bars: list[Bar] = []
    synthetic.write_checkpoint(tmp_path / "source", synthetic.to_divergent(STATE, CONFIG), CONFIG)
    convert(tmp_path / "source", tmp_path / "made", Options(resolve="mean"), progress=Bar)
    assert [bar.what for bar in bars] == ["comparing", "tying", "writing"]
    assert all(bar.closed for bar in bars)
    for bar in bars[1:]:
        assert bar.done == bar.total > 0


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"layout": "partial"}, "no layout"),
        ({"resolve": "slerp"}, "no way to resolve"),
        ({"dtype": "int8"}, "no dtype"),
        ({"max_shard_size": "-1"}, "no size"),
    ],
)
def test_options_are_checked(options: dict[str, Any], match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        Options(**options)


# ---- what it refuses


def without(key: str, **others: Any) -> Config:
    return {k: v for k, v in (CONFIG | others).items() if k != key}


ADAPTER = STEM.format(3) + "feed_forward.gate_up_proj_adapter_list.3.1.weight"
# Beside tests/faults, which holds every command to its table.
REFUSED: list[tuple[str, State, Config, type[ZambaCompatError], str]] = [
    ("row-27-lookalike", STATE | {"model\uff0enorm": torch.ones(1)}, CONFIG, CheckpointError, r"model\\uff0enorm"),
    (
        "row-27-unused-adapter",
        STATE | {ADAPTER.replace(".3.1.", ".9.1."): STATE[ADAPTER].clone()},
        CONFIG,
        CheckpointError,
        "9",
    ),
    ("row-30-no-rope-switch", STATE, without("use_mem_rope"), ConfigError, "use_mem_rope"),
    ("row-33-True", STATE, CONFIG | {"num_mem_blocks": True}, ConfigError, "num_mem_blocks"),
    ("row-34", synthetic.drop(STATE, ADAPTER), CONFIG, MissingTensorError, "position 3, layer 7"),
    ("row-39-shape", STATE, CONFIG | {"intermediate_size": 100}, CheckpointError, "gate_up_proj"),
    ("row-39-blocks", STATE, CONFIG | {"num_mem_blocks": 1}, CheckpointError, r"layers\.3|differ"),
]


@pytest.mark.parametrize(("state", "config", "kind", "match"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_refused(
    state: State, config: Config, kind: type[ZambaCompatError], match: str, run: Callable[..., Report], tmp_path: Path
) -> None:
    synthetic.write_checkpoint(tmp_path / "source", state, config)
    before = files(tmp_path)
    with pytest.raises(kind, match=match) as error:
        convert(tmp_path / "source", tmp_path / "made")
    assert error.value.remedy and error.value.where
    assert files(tmp_path) == before and [path.name for path in tmp_path.iterdir()] == ["source"]


def test_row_25_nan_and_infinity_are_told_with_their_names(run: Callable[..., Report], tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in synthetic.to_expanded(STATE, CONFIG).items()}
    for name in (FIRST, LATER, Q.format(9)):
        state[name][0, 0] = float("nan")
    state["model.layers.0.mamba.D"][0] = float("inf")
    report = run(state)
    (warning,) = report.warnings
    assert FIRST in warning and "model.layers.0.mamba.D" in warning and "2 tensors" in warning
    assert report.written and not report.divergences  # the same NaN in every copy is no difference
    assert read(tmp_path / "made")[FIRST].isnan().any()


def test_row_25_infinity_that_a_cast_makes(run: Callable[..., Report]) -> None:
    state = {**STATE, "model.layers.0.mamba.D": STATE["model.layers.0.mamba.D"] * 1e6}
    assert "model.layers.0.mamba.D" in run(state, dtype="float16").warnings[0]


def test_row_27_unknown_keys_are_copied_when_allowed(run: Callable[..., Report], tmp_path: Path) -> None:
    extra = {"model.layers.2.extra": torch.arange(3), "model\uff0enorm": torch.ones(2, dtype=torch.float64)}
    report = run(synthetic.to_expanded(STATE, CONFIG) | extra, allow_unknown=True, dtype="float32")
    assert sorted(report.unknown) == sorted(extra)
    made = read(tmp_path / "made")
    assert same({name: made[name] for name in extra}, extra)
    assert made.keys() == STATE.keys() | extra.keys()


def test_row_30_a_default_that_the_shapes_prove(run: Callable[..., Report], tmp_path: Path) -> None:
    report = run(config=without("mamba_d_conv"))
    assert "mamba_d_conv" in report.warnings[0]
    assert read_config(tmp_path / "made")["mamba_d_conv"] == 4


def test_row_35_adapters_in_wrong_slots_go_where_they_belong(run: Callable[..., Report], tmp_path: Path) -> None:
    run(synthetic.to_partial(STATE, CONFIG, "wrong-slots"))
    assert same(read(tmp_path / "made"), STATE)


def test_row_36_adapter_copies_that_no_position_uses_may_differ(run: Callable[..., Report], tmp_path: Path) -> None:
    state = synthetic.to_expanded(STATE, CONFIG)
    name = STEM.format(2) + "feed_forward.gate_up_proj_adapter_list.2.0.weight"  # position 2 is layer 5
    report = run(state | {name: state[name] + 1})
    assert "1 copies of adapters" in report.warnings[0]
    assert same(read(tmp_path / "made"), STATE)


def test_row_37_equal_copies_are_compared_to_the_last_byte(run: Callable[..., Report], tmp_path: Path) -> None:
    state = synthetic.to_expanded(STATE, CONFIG)
    last = state[Q.format(9)].view(torch.int16)
    last[-1, -1] ^= 1
    with pytest.raises(DivergentCopiesError, match="1 shared tensors"):
        run(state)
    last[-1, -1] ^= 1
    assert run(state).tensors == len(STATE)
    assert same(read(tmp_path / "made"), STATE)


def test_row_40_quantized_tensors_are_kept(run: Callable[..., Report], tmp_path: Path) -> None:
    config = CONFIG | {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    state = dict(STATE)
    weight = state.pop(FIRST)
    state[FIRST] = torch.randint(0, 255, (weight.numel() // 2, 1), dtype=torch.uint8)
    state |= {
        f"{FIRST}.absmax": torch.rand(5),
        f"{FIRST}.quant_state.bitsandbytes__nf4": torch.ones(9, dtype=torch.uint8),
    }
    expanded = synthetic.to_expanded(state, config)
    run(expanded, config)
    assert same(read(tmp_path / "made"), state)
    assert read_config(tmp_path / "made")["quantization_config"] == config["quantization_config"]
    with pytest.raises(CheckpointError, match="quantized"):
        convert(tmp_path / "source", tmp_path / "other", Options(dtype="float16"))
    assert not (tmp_path / "other").exists()


def test_row_47_remote_code_is_neither_run_nor_named_again(run: Callable[..., Report], tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "modeling.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    run(config=CONFIG | {"auto_map": {"AutoModelForCausalLM": "modeling.Model"}})
    assert not (tmp_path / "ran").exists()
    assert "auto_map" not in read_config(tmp_path / "made")


@pytest.mark.parametrize("state", [STATE, synthetic.to_divergent(STATE, CONFIG)], ids=["hub", "divergent"])
def test_a_failure_leaves_the_destination_as_it_was(state: State, tmp_path: Path, monkeypatch: Any) -> None:
    synthetic.write_checkpoint(tmp_path / "source", state, CONFIG)
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "old").write_text("old")
    before = files(tmp_path)

    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr("zamba_compat.operations.convert.write_manifest", fail)
    with pytest.raises(RuntimeError, match="no"):
        convert(tmp_path / "source", tmp_path / "made", Options(overwrite=True, resolve="mean"))
    assert files(tmp_path) == before
