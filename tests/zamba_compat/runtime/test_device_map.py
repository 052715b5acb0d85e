"""Device maps that place a shared block once, worked out on module trees without weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from zamba_compat.errors import ZambaCompatError
from zamba_compat.layout.sharing import SharingMap
from zamba_compat.runtime.device_map import normalise

SHARING = SharingMap("zamba2", num_layers=6, hybrid_layers=(1, 2, 3, 5), num_blocks=2)  # blocks at 1, 3 and at 2, 5


class Model(nn.Module):
    base_model_prefix = "model"


def model(prefix: str = "model.") -> Any:
    """layers.N.{shared_transformer.{self_attn,feed_forward},linear,mamba_decoder}, plain layers with a mamba."""
    with torch.device("meta"):
        base = Model()
        base.embed_tokens = nn.Embedding(2, 2)
        layers = []
        for layer in range(6):
            parts = {"mamba": nn.Conv1d(2, 2, 1)}
            if layer in SHARING.hybrid_layers:
                block = nn.ModuleDict({"self_attn": nn.Linear(2, 2), "feed_forward": nn.Linear(2, 2)})
                parts = {"shared_transformer": block, "linear": nn.Linear(2, 2), "mamba_decoder": nn.Linear(2, 2)}
            layers.append(nn.ModuleDict(parts))
        base.layers = nn.ModuleList(layers)
        if not prefix:
            return base
        top = Model()
        top.model, top.lm_head = base, nn.Linear(2, 2)
        return top


def places(device_map: dict[str, Any], tree: Any) -> dict[str, Any]:
    """The place of every parameter, and that accelerate can act on the map: no entry below another."""
    for name in device_map:
        assert not any(name != other and name.startswith(f"{other}." if other else "") for other in device_map), name
    found = {}
    for name, _ in tree.named_parameters():
        above = [key for key in device_map if not key or name == key or name.startswith(f"{key}.")]
        assert len(above) == 1, (name, above)
        found[name] = device_map[above[0]]
    return found


def layers(**place: str) -> dict[str, str]:
    names = {"model.embed_tokens": "cpu", "lm_head": "cpu"}
    return names | {f"model.layers.{layer}": place.get(f"l{layer}", "cpu") for layer in range(6)}


@pytest.mark.parametrize("device_map", [{"": "cpu"}, {"": "disk"}, {"model": "cpu", "lm_head": "cpu"}, layers()])
def test_one_place_is_left_as_it_is(device_map: dict[str, Any]) -> None:
    assert normalise(device_map, model(), SHARING) == device_map


def test_aliases_follow_the_first_user() -> None:
    device_map = layers(l1="disk", l5="disk")
    given = dict(device_map)
    got = places(normalise(device_map, model(), SHARING), model())
    assert device_map == given
    for part in ("self_attn", "feed_forward"):
        in_layer = [got[f"model.layers.{n}.shared_transformer.{part}.weight"] for n in (1, 2, 3, 5)]
        assert in_layer == ["disk", "cpu", "disk", "cpu"]
    assert got["model.layers.3.linear.weight"] == "cpu"
    assert got["model.layers.5.mamba_decoder.weight"] == "disk"


def test_devices_are_compared_as_given() -> None:
    device_map = layers(l3=torch.device("cuda", 1), l1=0)  # type: ignore[arg-type]
    got = normalise(device_map, model(), SHARING)
    assert got["model.layers.3.shared_transformer"] == 0
    assert got["model.layers.3.linear"] == torch.device("cuda", 1)


def test_a_deeper_entry_counts() -> None:
    got = places(normalise({"": "cpu", "model.layers.1": "disk"}, model(), SHARING), model())
    assert {name for name, place in got.items() if place == "disk"} == {
        name for name in got if name.startswith(("model.layers.1.", "model.layers.3.shared_transformer."))
    }


def test_a_block_in_parts() -> None:
    part = "model.layers.1.shared_transformer.self_attn"
    got = places(normalise({"": "cpu", part: "disk"}, model(), SHARING), model())
    assert {name for name, place in got.items() if place == "disk"} == {
        name for name in got if name.startswith((part, part.replace(".1.", ".3.")))
    }


def test_an_alias_has_no_place_of_its_own() -> None:
    device_map = {"": "cpu", "model.layers.3.shared_transformer.self_attn": "disk"}
    assert set(places(normalise(device_map, model(), SHARING), model()).values()) == {"cpu"}


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_is_where_the_embeddings_are(tied: bool) -> None:
    sharing = SharingMap("zamba2", 6, (1, 2, 3, 5), 2, tied_embeddings=tied)
    got = normalise(layers() | {"model.embed_tokens": "disk"}, model(), sharing)
    assert got["lm_head"] == ("disk" if tied else "cpu")


def test_a_base_model() -> None:
    got = places(normalise({"": "cpu", "layers.1": "disk"}, model(""), SHARING), model(""))
    assert got["layers.3.shared_transformer.self_attn.weight"] == "disk"
    assert got["layers.3.linear.weight"] == "cpu"


def test_what_is_not_covered_is_left_to_the_library() -> None:
    device_map = {"model.layers.3": "cpu"}
    assert normalise(device_map, model(), SHARING) == device_map


def test_half_a_module_on_disk_is_refused() -> None:
    tree = model()
    tree.model.layers[0].scale = nn.Parameter(torch.zeros(1, device="meta"))
    with pytest.raises(ZambaCompatError, match=r"scale cannot be on the disk"):
        normalise({"": "cpu", "model.layers.0": "disk", "model.layers.0.mamba": "cpu"}, tree, SHARING)
