"""inspect: what is there, what is wrong with it, how far things lie apart. Rows of bad input carry their number."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from support import synthetic
from support.raw_files import change_index, snapshot
from support.synthetic import Config, State
from zamba_compat.errors import CheckpointError, ConfigError, ZambaCompatError
from zamba_compat.layout.sharing import SharingMap
from zamba_compat.operations.convert import Options, convert
from zamba_compat.operations.inspect import Inspected, inspect

TINY = Path(__file__).parents[2] / "fixtures" / "tiny"
CONFIG = synthetic.make_config("7B", hidden_size=16, n_mamba_heads=4, vocab_size=8, adapter_rank=2)
STATE = synthetic.make_state(CONFIG, dtype=torch.bfloat16)
STEM = "model.layers.{}.shared_transformer."
Q = f"{STEM}self_attn.q_proj.weight"
UP = f"{STEM}feed_forward.gate_up_proj_adapter_list."
FIRST, LATER = Q.format(2), Q.format(5)
OWN = "model.layers.0.mamba.D"
INDEX = "model.safetensors.index.json"
SHARD = "model-00001-of-00003.safetensors"


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def to(name: str, state: State = STATE, config: Config = CONFIG, **options: Any) -> Path:
        return synthetic.write_checkpoint(tmp_path / name, state, config, **options)

    return to


def elements(state: State) -> int:
    return sum(tensor.numel() for tensor in state.values())


def quantized(name: str, weight: torch.Tensor) -> State:
    """A weight as bitsandbytes stores one in 4 bits, with sixteen evenly spaced values."""
    blocks = weight.float().view(-1, 64)
    absmax = blocks.abs().amax(1)
    codes = ((blocks / absmax[:, None] + 1) * 7.5).round().to(torch.uint8).view(-1)
    state = json.dumps({"shape": list(weight.shape), "blocksize": 64, "dtype": "bfloat16"}).encode()
    return {
        name: (codes[0::2] << 4 | codes[1::2])[:, None],
        f"{name}.absmax": absmax,
        f"{name}.quant_map": torch.linspace(-1, 1, 16),
        f"{name}.quant_state.bitsandbytes__nf4": torch.tensor(list(state), dtype=torch.uint8),
    }


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((b.double() - a.double()).norm() / a.double().norm()).item()


# ---- one checkpoint


def test_the_hub_layout(write: Callable[..., Path]) -> None:
    found = inspect(write("a"))
    a = found.a
    assert found.ok and found.b is None and found.comparison is None
    assert (a.layout, a.model_type, a.num_layers) == ("hub", "zamba2", 11)
    assert (a.tensors, a.parameters, a.bytes) == (len(STATE), elements(STATE), 2 * elements(STATE))
    assert a.dtypes == {"BF16": len(STATE)} and list(a.shards) == ["model.safetensors"]
    assert [tuple(at.values()) for at in a.positions] == [
        (0, 2, 0, 2),
        (1, 3, 1, 3),
        (2, 5, 0, 2),
        (3, 7, 1, 3),
        (4, 9, 0, 2),
    ]
    assert [block.layers for block in a.blocks] == [(2, 5, 9), (3, 7)]
    assert [block.adapters for block in a.blocks] == [(0, 2, 4), (1, 3)]
    assert [block.adapters_stored for block in a.blocks] == [(0, 2, 4), (1, 3)]
    for block in a.blocks:
        own = {key: t for key, t in STATE.items() if key.startswith(STEM.format(block.canonical_layer))}
        assert block.parameters == elements(own) and block.stored == {block.canonical_layer: 8}
        assert not block.adapters_misplaced
    assert not (a.copies or a.missing or a.extra or a.warnings or a.quantization)
    for name, words in (("embedding", "embed_tokens"), ("mamba", ".mamba."), ("adapters", "_adapter_list.")):
        of = {key: t for key, t in STATE.items() if words in key}
        one = a.components[name]
        assert (one.tensors, one.parameters, one.bytes) == (len(of), elements(of), 2 * elements(of))
    assert sum(one.parameters for one in a.components.values()) == a.parameters


@pytest.mark.parametrize(
    ("pattern", "keys", "hybrid", "expanded"), [("1.2B", 406, 6, None), ("2.7B", 531, 9, None), ("7B", 786, 13, 1018)]
)
def test_published_key_counts(
    pattern: str, keys: int, hybrid: int, expanded: int | None, write: Callable[..., Path]
) -> None:
    config = synthetic.make_config(
        pattern, full=True, hidden_size=8, n_mamba_heads=2, vocab_size=4, adapter_rank=1, mamba_d_state=2
    )
    state = synthetic.make_state(config, dtype=torch.bfloat16)
    found = inspect(write("a", state, config))
    assert found.ok and found.a.tensors == keys and len(found.a.positions) == hybrid
    if expanded is not None:
        found = inspect(write("b", synthetic.to_expanded(state, config), config))
        assert found.ok and found.a.tensors == expanded and found.a.parameters == elements(state)
        assert found.a.blocks[0].stored == dict.fromkeys(found.a.blocks[0].layers, 8)


def test_other_layouts(write: Callable[..., Path], tmp_path: Path) -> None:
    expanded = synthetic.to_expanded(STATE, CONFIG)
    untied, untied_config = synthetic.to_untied(expanded, CONFIG)
    stored = {
        "expanded": (expanded, CONFIG),
        "untied": (untied, untied_config),
        "partial": (synthetic.to_partial(STATE, CONFIG, "later-layer"), CONFIG),
    }
    for layout, (state, config) in stored.items():
        found = inspect(write(layout, state, config))
        assert found.ok and found.a.layout == layout
        assert found.a.parameters == (elements(untied) if layout == "untied" else elements(STATE))
        assert all(one.equal for one in found.a.copies) and bool(found.a.copies) == (layout == "expanded")
    wide = synthetic.make_config("7B", hidden_size=16, n_mamba_heads=4, intermediate_size=64, adapter_rank=2)
    state = synthetic.make_state(wide)
    write("wide", state, wide)
    for layout in ("zyphra-fork", "zyphra-native"):
        convert(tmp_path / "wide", tmp_path / layout, Options(layout=layout, format="safetensors"))
        found = inspect(tmp_path / layout, tmp_path / "wide")
        assert found.ok and found.a.layout == layout and found.a.parameters == elements(state)
        assert found.comparison is not None and found.comparison.total.distance == 0
        assert found.comparison.total.tensors == len(state) and not found.comparison.only_a


def test_copies_that_differ(write: Callable[..., Path]) -> None:
    divergent = synthetic.to_divergent(STATE, CONFIG, scale=0.05)
    a = inspect(write("a", divergent)).a
    assert a.layout == "divergent" and len(a.copies) == 16 + 2 * (3 + 2)
    by_key = {one.key: one for one in a.copies}
    one = by_key[FIRST]
    assert list(one.distances) == [Q.format(2), Q.format(5), Q.format(9)] and one.reference == FIRST and one.counts
    for name, distance in one.distances.items():
        assert distance == pytest.approx(relative(divergent[FIRST], divergent[name]), rel=1e-6)
    assert one.worst == max(d for d in one.distances.values() if d is not None) > 0.04
    adapter = by_key[f"{UP.format(2)}4.0.weight"]
    assert adapter.reference == f"{UP.format(9)}4.0.weight" and not adapter.counts
    (fault,) = a.faults
    assert "16 shared tensors" in fault and "--resolve" in fault


def test_only_adapters_copies_differ(write: Callable[..., Path]) -> None:
    """At layers of other positions they are in no use: no fault, as in a conversion."""
    state = synthetic.to_expanded(STATE, CONFIG)
    state[f"{UP.format(2)}4.0.weight"] = state[f"{UP.format(2)}4.0.weight"] + 1
    found = inspect(write("a", state))
    assert found.ok and found.a.layout == "expanded"
    assert [one.key for one in found.a.copies if not one.equal] == [f"{UP.format(2)}4.0.weight"]


def test_a_stored_tied_head(write: Callable[..., Path]) -> None:
    key = "model.embed_tokens.weight"
    found = inspect(write("a", STATE | {"lm_head.weight": STATE[key].clone()}))
    assert found.ok and found.a.parameters == elements(STATE)
    (one,) = found.a.copies
    assert one.key == key and one.equal
    found = inspect(write("a", STATE | {"lm_head.weight": 2 * STATE[key]}))
    assert not found.ok and found.a.copies[0].distances["lm_head.weight"] == pytest.approx(1)


def test_components_filter(write: Callable[..., Path]) -> None:
    divergent = write("a", synthetic.to_divergent(STATE, CONFIG))
    found = inspect(divergent, components=["norms"])
    assert set(found.a.components) == {"norms"}
    assert {one.key.rpartition(".")[0].rpartition(".")[2] for one in found.a.copies} == {
        "input_layernorm",
        "pre_ff_layernorm",
    }
    assert not found.ok and inspect(divergent, components=["mamba", "linear"]).ok
    found = inspect(TINY / "base", TINY / "tuned", components=["linear", "norms"])
    assert found.comparison is not None and set(found.comparison.components) == {"linear", "norms"}
    assert len(found.comparison.tensors) == 6 + 14
    with pytest.raises(ZambaCompatError, match="'mambo'"):
        inspect(divergent, components=["mambo"])


def test_json(write: Callable[..., Path]) -> None:
    state = STATE | {OWN: torch.full_like(STATE[OWN], float("nan"))}
    found = inspect(write("a"), write("b", state))
    report = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert report["ok"] is True and report["a"]["tensors"] == len(STATE)
    row = next(row for row in report["comparison"]["tensors"] if row["name"] == OWN)
    assert row["distance"] == "nan" and report["comparison"]["components"]["mamba"]["largest"] == OWN
    assert report["comparison"]["components"]["linear"]["distance"] == 0


def test_quantized(write: Callable[..., Path]) -> None:
    state, weights = dict(STATE), [FIRST, "model.layers.0.mamba.in_proj.weight"]
    for name in weights:
        state |= quantized(name, STATE[name])
    config = CONFIG | {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    inspection = inspect(write("a"), write("b", state, config))
    assert inspection.ok and inspection.b is not None and inspection.comparison is not None
    b = inspection.b
    assert b.quantization is not None and b.parameters == elements(STATE) and b.tensors == len(STATE) + 2 * 3
    assert (dict(b.quantization.weights), b.quantization.shared, b.quantization.double) == ({"nf4": 2}, 1, False)
    assert b.quantization.config == config["quantization_config"]
    apart = {pair.name: pair.distance for pair in inspection.comparison.tensors}
    assert all((apart[name] or 0) > 0.03 if name in weights else apart[name] == 0 for name in STATE)
    assert max(apart[name] or 0 for name in weights) < 0.2
    expanded = synthetic.to_expanded({k: t for k, t in state.items() if ".in_proj" not in k}, CONFIG)
    expanded |= {k: t for k, t in state.items() if ".in_proj" in k}
    found = inspect(write("c", expanded, config)).a
    assert not found.faults and found.layout == "expanded"
    name = f"{LATER}.absmax"
    a = inspect(write("d", expanded | {name: expanded[name] * 2}, config)).a
    one = next(one for one in a.copies if one.key == FIRST)
    assert one.distances[LATER] == pytest.approx(1) and a.faults


def test_parts_at_another_layer_belong_to_the_weight(write: Callable[..., Path]) -> None:
    other = SharingMap.from_config(CONFIG).aliases(FIRST)[-1]
    parts = quantized(FIRST, STATE[FIRST])
    parts = {name if name == FIRST else name.replace(FIRST, other): tensor for name, tensor in parts.items()}
    found = inspect(write("a", STATE | parts)).a
    assert other != FIRST and found.quantization is not None and found.quantization.weights == {"nf4": 1}
    assert found.parameters == elements(STATE)


# ---- two checkpoints


def test_the_trained_pair() -> None:
    found = inspect(TINY / "base", TINY / "tuned")
    base, tuned = (load_file(TINY / name / "model.safetensors") for name in ("base", "tuned"))
    assert found.ok and found.b is not None and found.comparison is not None
    comparison = found.comparison
    assert {pair.name for pair in comparison.tensors} == base.keys() and not comparison.config
    for pair in comparison.tensors:
        assert pair.a == pair.b == pair.name
        assert pair.distance == pytest.approx(relative(base[pair.name], tuned[pair.name]), rel=1e-6)
    layers = {pair.name: pair.layers for pair in comparison.tensors}
    assert layers["model.layers.1.shared_transformer.self_attn.q_proj.weight"] == (1, 4, 7)
    assert layers["model.embed_tokens.weight"] == ()
    for component, words in (("linear", ".linear."), ("attention", ".self_attn.")):
        names = [name for name in base if words in name]
        a, b = (torch.cat([side[name].flatten() for name in names]) for side in (base, tuned))
        one = comparison.components[component]
        assert one.tensors == len(names) and one.distance == pytest.approx(relative(a, b), rel=1e-6)
        assert one.largest == max(names, key=lambda name: relative(base[name], tuned[name]))
    assert comparison.total.tensors == 117 and comparison.total.equal == 2


def test_layouts_are_compared_under_canonical_names(write: Callable[..., Path]) -> None:
    other = synthetic.make_state(CONFIG, seed=1, dtype=torch.bfloat16)
    hub = write("hub")
    plain = inspect(hub, write("other", other)).comparison
    expanded = inspect(hub, write("expanded", synthetic.to_expanded(other, CONFIG))).comparison
    partial = inspect(write("partial", synthetic.to_partial(STATE, CONFIG, "wrong-slots")), hub).comparison
    assert plain is not None and expanded is not None and partial is not None
    assert plain.components == expanded.components and len(expanded.tensors) == len(STATE)
    assert [pair.distance for pair in plain.tensors] == [pair.distance for pair in expanded.tensors]
    assert partial.total.distance == 0 and partial.total.equal == len(STATE)
    assert not (expanded.only_a or expanded.only_b or partial.only_a or partial.only_b)


def test_positions_are_compared_by_themselves_where_copies_differ(write: Callable[..., Path]) -> None:
    divergent = synthetic.to_divergent(STATE, CONFIG, scale=0.05)
    untied, untied_config = synthetic.to_untied(divergent, CONFIG)
    hub, div, unt = write("hub"), write("div", divergent), write("unt", untied, untied_config)
    for other in (div, unt):
        comparison = inspect(hub, other).comparison
        assert comparison is not None and len(comparison.tensors) == len(untied)
        pair = next(pair for pair in comparison.tensors if pair.name == LATER)
        assert (pair.a, pair.b, pair.layers) == (FIRST, LATER, (5,))
        assert pair.distance == pytest.approx(relative(STATE[FIRST], divergent[LATER]), rel=1e-6)
        adapter = next(pair for pair in comparison.tensors if pair.b == f"{UP.format(9)}4.0.weight")
        assert adapter.a == f"{UP.format(2)}4.0.weight" and adapter.layers == (9,)
    comparison = inspect(div, unt).comparison
    assert comparison is not None and comparison.total.distance == 0
    assert comparison.config == {"num_mem_blocks": (2, 5)}


def test_a_base_model_and_a_language_model(write: Callable[..., Path]) -> None:
    bare = {name.removeprefix("model."): tensor for name, tensor in STATE.items()}
    head = STATE | {"lm_head.weight": STATE["model.embed_tokens.weight"] * 2}
    b = write("head", head, {**CONFIG, "tie_word_embeddings": False})
    found = inspect(write("bare", bare), b)
    assert found.ok and found.comparison is not None
    apart = {pair.name: pair for pair in found.comparison.tensors}
    assert apart.keys() == head.keys() and apart["lm_head.weight"].a == "embed_tokens.weight"
    assert [name for name, pair in apart.items() if pair.distance] == ["lm_head.weight"]


def test_different_models(write: Callable[..., Path]) -> None:
    wide = synthetic.make_config("7B", hidden_size=16, n_mamba_heads=4, vocab_size=12, adapter_rank=2)
    deeper = synthetic.make_config("2.7B", hidden_size=16, n_mamba_heads=4, vocab_size=8, adapter_rank=2)
    found = inspect(write("a"), write("b", synthetic.make_state(wide, dtype=torch.bfloat16), wide))
    assert found.comparison is not None and found.comparison.config == {"vocab_size": (8, 12)}
    (odd,) = [pair for pair in found.comparison.tensors if pair.reason]
    assert odd.name == "model.embed_tokens.weight" and odd.distance is None and odd.reason == "[8, 16] and [12, 16]"
    assert found.comparison.components["embedding"].tensors == 0
    found = inspect(write("a"), write("b", synthetic.make_state(deeper), deeper))
    assert found.ok and found.comparison is not None
    assert "model.layers.3.linear.weight" in found.comparison.only_a
    assert "model.layers.4.linear.weight" in found.comparison.only_b
    zamba = synthetic.make_config(synthetic.ZAMBA1)
    found = inspect(write("a"), write("b", synthetic.make_state(zamba), zamba))
    assert found.ok and found.b is not None and found.b.model_type == "zamba" and len(found.b.blocks) == 1


# ---- broken checkpoints: what a conversion refuses is a fault, and what is left is shown

Break = Callable[[Path], object]


def _config(**entries: Any) -> Break:
    def change(directory: Path) -> None:
        config = json.loads((directory / "config.json").read_text()) | entries
        (directory / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "drop"}))

    return change


def _text(name: str, data: bytes) -> Break:
    return lambda directory: (directory / name).write_bytes(data)


def _header(change: Callable[[dict[str, Any]], object], grow: bytes = b"") -> Break:
    def rewrite(directory: Path) -> None:
        data = (directory / SHARD).read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        (directory / SHARD).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :] + grow)

    return rewrite


def _entry(header: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = next(entry for name, entry in header.items() if name != "__metadata__")
    return entry


def _index(**entries: str) -> Break:
    return lambda directory: change_index(directory, lambda content: content["weight_map"].update(entries))


def _link(directory: Path) -> None:
    outside = directory.parent / "outside.safetensors"
    (directory / SHARD).rename(outside)
    (directory / SHARD).symlink_to(outside)


def _fifo(directory: Path) -> None:
    (directory / SHARD).unlink()
    os.mkfifo(directory / SHARD)


def _twice(directory: Path) -> None:
    (directory / "model-00002-of-00003.safetensors").write_bytes((directory / SHARD).read_bytes())


def _rename(header: dict[str, Any]) -> None:
    header["model.layers.0.mambа.D"] = header.pop(next(name for name in header if name != "__metadata__"))  # noqa: RUF001


FILES: dict[str, Break] = {
    "1 path": _index(**{OWN: "../x.safetensors"}),
    "2 absolute path": _index(**{OWN: "C:\\x.safetensors"}),
    "3 link": _link,
    "4 fifo": _fifo,
    "5 another kind": _index(**{OWN: "x.bin"}),
    "6 missing shard": lambda directory: (directory / SHARD).unlink(),
    "7 not in the shard": _index(more=SHARD),
    "8 not in the index": lambda directory: change_index(directory, lambda content: content["weight_map"].pop(OWN)),
    "9 twice": _twice,
    "11 no weight_map": _text(INDEX, b"{}"),
    "12 duplicate keys in the index": _text(INDEX, b'{"weight_map": {}, "weight_map": {}}'),
    "12 duplicate keys in the config": _text("config.json", b'{"a": 1, "a": 2}'),
    "14 stale file": _text("model.safetensors", b""),
    "15 empty shard": _text(SHARD, b""),
    "16 truncated": lambda directory: os.truncate(directory / SHARD, (directory / SHARD).stat().st_size - 5),
    "17 trailing bytes": _header(lambda header: None, grow=b"xx"),
    "18 header beyond the file": _text(SHARD, struct.pack("<Q", 2**40) + b"{}"),
    "19 header above the cap": _text(SHARD, struct.pack("<Q", 17 * 2**20) + b" " * (17 * 2**20)),
    "20 hole": _header(lambda header: header.pop(next(name for name in header if name != "__metadata__"))),
    "21 shape and size": _header(lambda header: _entry(header).update(shape=[1])),
    "22 unknown dtype": _header(lambda header: _entry(header).update(dtype="F3")),
    "26 not UTF-8": _text("config.json", b'{"\xff": 1}'),
    "26 nested": _text("config.json", b"[" * 100_000),
    "27 unknown key, a look-alike": _header(_rename),
    "29 empty config": _text("config.json", b""),
    "29 no config": lambda directory: (directory / "config.json").unlink(),
    "30 config key missing": _config(num_attention_heads="drop"),
    "30 pattern missing": _config(layers_block_type="drop", hybrid_layer_ids="drop"),
    "31 another architecture": _config(model_type="llama"),
    "32 hybrid_layer_ids": _config(hybrid_layer_ids=[1]),
    "33 no blocks": _config(num_mem_blocks=0),
    "33 too many blocks": _config(num_mem_blocks=6),
    "33 not an integer": _config(num_mem_blocks="2"),
    "39 vocabulary": _config(vocab_size=9),
    "39 a size that is none": _config(hidden_size=-1),
}


@pytest.mark.parametrize("row", FILES)
def test_row(row: str, write: Callable[..., Path], tmp_path: Path) -> None:
    directory = write("a", max_shard_size=2 * elements(STATE) // 3 + 4000)
    assert len(list(directory.glob("model-*-of-00003.safetensors"))) == 3
    FILES[row](directory)
    a = _refused(directory)
    assert a.tensors >= len(STATE) / 2  # two of three shards are whole
    b = inspect(directory, write("b"))  # comparing goes as far as it can
    assert not b.ok and b.comparison is not None and b.b is not None and not b.b.faults


def _refused(directory: Path) -> Inspected:
    """What `inspect` says of a checkpoint that `convert` refuses; the refusal is among the faults."""
    before = snapshot(directory)
    with pytest.raises(ZambaCompatError) as caught:
        convert(directory, directory.parent / "made", Options(dry_run=True))
    found = inspect(directory)
    assert not found.ok and str(caught.value) in found.a.faults
    assert len(set(found.a.faults)) == len(found.a.faults)
    assert snapshot(directory) == before
    return found.a


@pytest.mark.parametrize(
    ("row", "state", "lacking"),
    [
        ("23 mixed dtypes", lambda state: state | {LATER: state[LATER].float()}, ()),
        ("24 zero size", lambda state: state | {OWN: state[OWN][:0]}, ()),
        ("34 adapter", lambda state: synthetic.drop(state, "*list.4.0.weight"), (f"{UP.format(2)}4.0.weight",)),
        ("38 no copy", lambda state: synthetic.drop(state, "*.2.*q_proj*", "*.5.*q_proj*", "*.9.*q_proj*"), (FIRST,)),
        ("own tensor missing", lambda state: synthetic.drop(state, OWN), (OWN,)),
        ("39 shape", lambda state: state | {OWN: torch.zeros(5, dtype=torch.bfloat16)}, ()),
    ],
)
def test_row_tensors(
    row: str, state: Callable[[State], State], lacking: tuple[str, ...], write: Callable[..., Path]
) -> None:
    stored = state(synthetic.to_expanded(STATE, CONFIG))
    a = _refused(write("a", stored))
    assert a.missing == lacking and not a.extra and a.tensors == len(stored)
    assert a.layout == ("divergent" if row.startswith("23") else "expanded") and len(a.positions) == 5
    if row.startswith("34"):
        assert a.blocks[0].adapters == (0, 2, 4) and a.blocks[0].adapters_stored == (0, 2)


def test_row_27_unknown_keys(write: Callable[..., Path]) -> None:
    a = _refused(write("a", STATE | {"odd": torch.zeros(3)}))
    assert a.extra == ("odd",) and a.layout == "hub" and a.parameters == elements(STATE)
    assert a.components["other"].tensors == 1 and len(a.faults) == 1


def test_row_35_adapters_in_wrong_slots(write: Callable[..., Path]) -> None:
    found = inspect(write("a", synthetic.to_partial(STATE, CONFIG, "wrong-slots")))
    assert found.ok and [block.adapters_misplaced for block in found.a.blocks] == [(0, 2, 4), (1, 3)]
    state = dict(STATE)
    lost = state.pop(f"{UP.format(2)}4.0.weight")
    state |= {f"{UP.format(3)}4.0.weight": lost, f"{UP.format(7)}4.0.weight": lost + 1}
    a = _refused(write("b", state))
    assert "none of them is where the adapter belongs" in a.faults[0]


def test_row_36_and_what_else_is_wrong(write: Callable[..., Path]) -> None:
    """Copies that differ are found in a checkpoint that has other faults too."""
    divergent = synthetic.drop(synthetic.to_divergent(STATE, CONFIG), OWN)
    a = _refused(write("a", divergent))
    assert a.layout == "divergent" and any("copies that differ" in fault for fault in a.faults)


def test_row_46_pickles(write: Callable[..., Path]) -> None:
    directory = write("a", format="bin")
    assert _refused(directory).tensors == 0
    found = inspect(directory, allow_pickle=True)
    assert found.ok and found.a.tensors == len(STATE)


def test_row_56_changes_while_reading(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    directory = write("a")
    monkeypatch.setattr(
        "zamba_compat.operations.inspect.compare_copies", lambda *_: os.utime(directory / "config.json", (1, 1)) or ()
    )
    with pytest.raises(CheckpointError, match="changed while they were read"):
        inspect(directory)


def test_damaged_shards_are_told_and_the_rest_is_compared(write: Callable[..., Path]) -> None:
    directory = write("a", synthetic.to_divergent(STATE, CONFIG), max_shard_size=elements(STATE))
    shard = directory / json.loads((directory / INDEX).read_text())["weight_map"][LATER]
    os.truncate(shard, shard.stat().st_size - 5)
    found = inspect(directory, write("b"))
    assert found.comparison is not None and not found.a.missing
    reasons = {pair.name: pair.reason for pair in found.comparison.tensors if pair.reason}
    assert reasons and all("damaged" in reason for reason in reasons.values())
    assert 0 < len(reasons) < len(found.comparison.tensors)
    assert any(distance is None for one in found.a.copies for distance in one.distances.values())


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        inspect(tmp_path / "absent")
    with pytest.raises((CheckpointError, ConfigError), match=r"There is no model\.safetensors"):
        inspect(tmp_path)


def test_row_25_values_that_are_not_finite(write: Callable[..., Path]) -> None:
    """Found where they are asked for, in one checkpoint or two, under the names they are stored by."""
    healthy = write("a")
    assert inspect(healthy).a.nonfinite is None
    assert inspect(healthy, values=True).a.nonfinite == ()
    state = {**STATE, **{name: STATE[name].clone() for name in (OWN, FIRST)}}
    state[OWN][-1], state[FIRST][0, 1] = float("nan"), float("-inf")
    broken = write("b", state)
    assert inspect(broken).ok
    for found in (inspect(broken, values=True), inspect(healthy, broken, values=True)):
        side = found.a if found.b is None else found.b
        assert not found.ok and set(side.nonfinite or ()) == {OWN, FIRST}
        (fault,) = side.faults
        assert "2 tensors hold NaN or infinity" in fault and OWN in fault and FIRST in fault


def test_values_of_a_pickled_and_of_a_damaged_checkpoint(write: Callable[..., Path], tmp_path: Path) -> None:
    state = {**STATE, OWN: torch.full_like(STATE[OWN], float("inf"))}
    torch.save(state, tmp_path / "x.pt")
    write("a")
    (tmp_path / "config.json").write_bytes((tmp_path / "a" / "config.json").read_bytes())
    assert inspect(tmp_path / "x.pt", allow_pickle=True, values=True).a.nonfinite == (OWN,)
    file = next((tmp_path / "a").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-64])
    found = inspect(tmp_path / "a", values=True)
    assert not found.ok and found.a.nonfinite == ()
