"""from_pretrained(device_map=...): a shared block lives in one place, under every name, and computes the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from conformance.helpers import Checkpoint, load, logits, relative, shared_storages
from conformance.helpers import case as full_case
from conformance.mending import builds
from conformance.test_saving import stored_names
from support import synthetic

pytestmark = builds()

REST = {"model.embed_tokens": "cpu", "model.final_layernorm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}


def by_layer(config: synthetic.Config, place: Callable[[int], str]) -> dict[str, str]:
    return REST | {f"model.layers.{layer}": place(layer) for layer in range(config["num_hidden_layers"])}


def make_case(pattern: str = "7B") -> synthetic.Case:
    return full_case(pattern, length=17)


def results(model: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    return logits(model, ids), model.generate(ids, max_new_tokens=3, do_sample=False)


Same = Callable[..., None]


@pytest.fixture(scope="module")
def assert_same(checkpoint: Checkpoint) -> Same:
    """assert_same(model, case, pattern): it gives what the model gives that is loaded from any layout without a map."""
    expected: dict[str, tuple[Tensor, Tensor]] = {}

    def compare(model: Any, case: synthetic.Case, pattern: str = "7B") -> None:
        if pattern not in expected:
            expected[pattern] = results(load(checkpoint(pattern)), case.ids)
        for got, want in zip(results(model, case.ids), expected[pattern], strict=True):
            assert torch.equal(got, want)

    return compare


def assert_places(model: Any, case: synthetic.Case, on_disk: Callable[[int], bool]) -> None:
    """Each block is where `on_disk` puts its first layer; what is in memory is there once."""
    hybrid, blocks = case.config["hybrid_layer_ids"], case.config["num_mem_blocks"]
    for position, layer in enumerate(hybrid):
        devices = {p.device.type for p in model.model.layers[layer].shared_transformer.parameters()}
        assert devices == {"meta" if on_disk(hybrid[position % blocks]) else "cpu"}
    for suffix, found in shared_storages(model).items():
        assert len(found - {0}) <= (1 if "adapter_list" in suffix else blocks), suffix


@pytest.mark.mended_by("zamba2-device-map")
@pytest.mark.parametrize("first", ["disk", "cpu"])
@pytest.mark.parametrize("pattern", ["1.2B", "7B"])
def test_positions_of_a_block_on_cpu_and_disk(
    pattern: str, first: str, checkpoint: Checkpoint, assert_same: Same
) -> None:
    case = make_case(pattern)
    other = "cpu" if first == "disk" else "disk"
    firsts = case.config["hybrid_layer_ids"][: case.config["num_mem_blocks"]]
    device_map = by_layer(case.config, lambda i: first if i in firsts else other)
    model = load(checkpoint(pattern), device_map=device_map)
    assert_places(model, case, lambda _: first == "disk")
    assert_same(model, case, pattern)


@pytest.mark.relies_on("zamba2-device-map-one-place", when=lambda p: p["places"] == "everything", fixed="5.13")
# Where all is on the disk, 5.x needs no help.
@pytest.mark.mended_by("zamba2-device-map", when=lambda p: p["places"] != "everything")
@pytest.mark.mended_by("zamba2-device-map", fixed="5.0")
@pytest.mark.parametrize("places", ["everything", "one block", "one layer of the CPU's", "embeddings"])
def test_explicit_maps(places: str, checkpoint: Checkpoint, assert_same: Same) -> None:
    case = make_case()
    first, second = case.config["hybrid_layer_ids"][:2]
    block = f"model.layers.{first}.shared_transformer"
    device_map, on_disk = {
        "everything": ({"": "disk"}, lambda _: True),
        "one block": ({"": "cpu", block: "disk"}, lambda layer: layer == first),
        "one layer of the CPU's": ({"": "cpu", f"model.layers.{second}": "disk"}, lambda layer: layer == second),
        "embeddings": (by_layer(case.config, lambda _: "cpu") | {"model.embed_tokens": "disk"}, lambda _: False),
    }[places]
    given = dict(device_map)
    model = load(checkpoint("7B"), device_map=device_map)
    assert device_map == given
    assert_places(model, case, on_disk)
    assert_same(model, case)


@pytest.mark.mended_by("zamba2-device-map", when=lambda p: p["limit"] is not None, fixed="5.0")
@pytest.mark.parametrize("limit", [None, 600_000])
def test_auto(limit: int | None, checkpoint: Checkpoint, assert_same: Same) -> None:
    case = make_case()
    model = load(checkpoint("7B"), device_map="auto", max_memory=None if limit is None else {"cpu": limit})
    in_memory = {p.data_ptr(): p.nbytes for p in model.parameters() if p.device.type != "meta"}
    if limit is not None:
        assert sum(in_memory.values()) <= limit
        assert "disk" in model.hf_device_map.values()
    assert_same(model, case)


def test_one_device(checkpoint: Checkpoint, assert_same: Same) -> None:
    case = make_case()
    model = load(checkpoint("7B"), device_map={"": "cpu"})
    assert all(p.device.type == "cpu" for p in model.parameters())
    assert_same(model, case)


@pytest.mark.mended_by("zamba2-device-map")
@pytest.mark.parametrize(
    ("layout", "format"),
    [("expanded", "safetensors"), ("split", "safetensors"), ("hub", "bin"), ("later-layer", "bin")],
)
def test_layouts(
    layout: str, format: Literal["safetensors", "bin"], tmp_path: Path, checkpoint: Checkpoint, assert_same: Same
) -> None:
    case = make_case()
    directory = checkpoint("7B", layout, max_shard_size=300_000, format=format)
    first = case.config["hybrid_layer_ids"][0]
    device_map = by_layer(case.config, lambda i: "disk" if i == first else "cpu")
    model = load(directory, device_map=device_map, offload_folder=tmp_path / "offload")
    written = list((tmp_path / "offload").glob("*")) if format == "safetensors" else []
    assert not written, "what is in safetensors files is read from there"
    assert_places(model, case, lambda layer: layer == first)
    assert_same(model, case)


@pytest.mark.mended_by("zamba2-device-map")
@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForSequenceClassification"])
def test_other_heads(auto: str, checkpoint: Checkpoint) -> None:
    case = make_case()
    device_map: dict[str, str] = {"": "cpu"}
    prefix = "" if auto == "AutoModel" else "model."
    device_map[f"{prefix}layers.{case.config['hybrid_layer_ids'][0]}"] = "disk"
    model = load(checkpoint("7B"), auto, device_map=device_map)
    base = getattr(model, "model", model)
    with torch.no_grad():
        hidden = base(case.ids, use_cache=False).last_hidden_state
    assert relative(hidden @ case.state["model.embed_tokens.weight"].T, case.logits) < 2e-5
    assert base.layers[case.config["hybrid_layer_ids"][2]].shared_transformer.self_attn.q_proj.weight.is_meta


@pytest.mark.mended_by("zamba2-device-map", fixed="5.0")
def test_an_offloaded_block_is_read_once_per_use(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.utils import OffloadedWeightsLoader

    case = make_case()
    model = load(checkpoint("7B"), device_map={"": "disk"})
    reads: Counter[str] = Counter()
    read = OffloadedWeightsLoader.__getitem__

    def counted(self: Any, key: str) -> Any:
        reads[key.rpartition("shared_transformer.")[2]] += 1
        return read(self, key)

    monkeypatch.setattr(OffloadedWeightsLoader, "__getitem__", counted)
    logits(model, case.ids)
    assert reads["self_attn.q_proj.weight"] == len(case.config["hybrid_layer_ids"])


@pytest.mark.relies_on("zamba2-offloaded-save")
@pytest.mark.mended_by("zamba2-device-map", when=lambda p: p["places"] == "a block")
@pytest.mark.mended_by("zamba2-device-map", fixed="5.0")
@pytest.mark.parametrize(("places", "dtype"), [("everything", "float32"), ("a block", "float16"), ("auto", "float32")])
def test_saving(places: str, dtype: str, tmp_path: Path, checkpoint: Checkpoint) -> None:
    case = make_case()
    first = case.config["hybrid_layer_ids"][0]
    options: dict[str, Any] = {
        "everything": {"device_map": {"": "disk"}},
        "a block": {"device_map": by_layer(case.config, lambda i: "disk" if i == first else "cpu")},
        "auto": {"device_map": "auto", "max_memory": {"cpu": 600_000}},
    }[places]
    model = load(checkpoint("7B"), torch_dtype=getattr(torch, dtype), **options)
    assert_saved(model, case, tmp_path, getattr(torch, dtype))


def assert_saved(model: Any, case: synthetic.Case, directory: Path, dtype: torch.dtype = torch.float32) -> None:
    model.save_pretrained(directory, max_shard_size="500KB")
    assert stored_names(directory) == sorted(case.state)
    again = load(directory, torch_dtype=dtype).state_dict()
    for name, tensor in case.state.items():
        assert torch.equal(again[name], tensor.to(dtype)), name
    logits(model, case.ids)  # the hooks are as they were


@pytest.fixture
def several_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """ "cpu:1", "cpu:2" ... as devices: torch takes the names but forgets the number, and copies at every move."""
    import accelerate.utils.modeling as modeling
    import accelerate.utils.offload as offload

    move, same, safe_open = torch.Tensor.to, modeling.check_device_same, offload.safe_open

    def plain(device: Any) -> Any:
        return "cpu" if isinstance(device, str | torch.device) and str(device).startswith("cpu") else device

    def to(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        return move(tensor, *map(plain, args), **{name: plain(value) for name, value in kwargs.items()})

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(modeling, "check_device_same", lambda a, b: a.type == b.type == "cpu" or same(a, b))
    monkeypatch.setattr(offload, "safe_open", lambda file, framework, device: safe_open(file, framework, plain(device)))


@pytest.mark.mended_by("zamba2-device-map")
@pytest.mark.relies_on("zamba2-device-map-hooks", "zamba2-device-map-hooks-4x", "zamba2-offloaded-save")
@pytest.mark.usefixtures("several_cpus")
@pytest.mark.parametrize("places", [("cpu:1", "cpu:2"), ("cpu:1", "cpu"), ("cpu", "disk", "cpu:1")])
def test_several_devices(places: tuple[str, ...], tmp_path: Path, checkpoint: Checkpoint, assert_same: Same) -> None:
    """Beside another device "cpu" is offloaded too: kept there, and moved in for each use."""
    case = make_case()
    device_map = by_layer(case.config, lambda i: places[i % len(places)]) | dict.fromkeys(REST, "cpu:1")
    model = load(checkpoint("7B"), device_map=device_map)
    hybrid, blocks = case.config["hybrid_layer_ids"], case.config["num_mem_blocks"]
    for position, layer in enumerate(hybrid):
        name = f"model.layers.{layer}.shared_transformer"
        assert place_of(model.hf_device_map, name) == places[hybrid[position % blocks] % len(places)]
    offloaded = {"disk", "cpu"} & set(places)
    assert_places(model, case, lambda layer: places[layer % len(places)] in offloaded)
    assert_same(model, case)
    assert_saved(model, case, tmp_path)


def place_of(device_map: dict[str, str], name: str) -> str:
    while name not in device_map:
        name = name.rpartition(".")[0]
    return device_map[name]


@pytest.mark.ours
@pytest.mark.parametrize("choice", ["keep", "mean"])
def test_divergent_copies(choice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case()
    divergent = synthetic.to_divergent(case.state, case.config)
    directory = synthetic.write_checkpoint(tmp_path / "model", divergent, case.config)
    monkeypatch.setenv("ZAMBA_COMPAT_DIVERGENT", choice)
    model = load(directory, device_map={"": "disk"}, offload_folder=tmp_path / "offload")
    assert (tmp_path / "offload").exists() == (choice == "mean")
    assert torch.equal(logits(model, case.ids), logits(load(directory), case.ids))


@pytest.mark.relies_on("zamba2-offloaded-save")
@pytest.mark.ours
def test_refusals(checkpoint: Checkpoint) -> None:
    from zamba_compat.errors import ZambaCompatError

    case = make_case()
    directory = checkpoint("7B", format="bin")
    with pytest.raises(ZambaCompatError, match=r"not in safetensors files.*offload_folder"):
        load(directory, device_map={"": "disk"})

    directory = checkpoint("7B")
    model = load(directory, device_map={"": "disk"})
    with pytest.raises(ZambaCompatError, match=r"read from here.*another directory"):
        model.save_pretrained(directory)
    logits(model, case.ids)
