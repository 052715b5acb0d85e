"""Which layer a tensor takes part in: every shared one where its block runs, an adapter at its own position."""

from __future__ import annotations

import subprocess
import sys

import pytest

from support.synthetic import PATTERNS, hybrid_layers, make_config
from zamba_compat.layout.sharing import SharingMap
from zamba_compat.merging.mergekit.architecture import keys_by_layer, layers_of


def test_layers_of_the_published_7b() -> None:
    sharing = SharingMap.from_config(make_config("7B", full=True))
    block = "model.layers.11.shared_transformer."
    assert layers_of(sharing, f"{block}self_attn.q_proj.weight") == (11, 23, 35, 47, 59, 71)
    assert layers_of(sharing, f"{block}feed_forward.gate_up_proj_adapter_list.9.0.weight") == (59,)
    assert layers_of(sharing, "model.layers.17.linear.weight") == (17,)
    assert layers_of(sharing, "model.layers.17.mamba_decoder.mamba.D") == (17,)
    assert layers_of(sharing, "model.embed_tokens.weight") == ()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_tensor_stands_under_its_layers(pattern: str) -> None:
    config = make_config(pattern)
    sharing = SharingMap.from_config(config)
    found = keys_by_layer(sharing)
    assert found.keys() == {None, *range(config["num_hidden_layers"])}
    assert {key for keys in found.values() for key in keys} == set(sharing.hub_keys())
    for layer in hybrid_layers(config):
        home = sharing.position_of(layer).canonical_layer
        shared = [key for key in found[layer] if f"layers.{home}.shared_transformer" in key]
        adapters = {sharing.parse(key).adapter for key in shared} - {None}
        assert adapters == {sharing.position_of(layer).index}
        block = {key for key in sharing.shared_keys() if f"layers.{home}." in key and "_adapter_list" not in key}
        assert {key for key in shared if "_adapter_list" not in key} == block


def test_nothing_here_needs_mergekit_to_be_imported() -> None:
    code = (
        "import sys; sys.modules['mergekit'] = None\n"
        "import zamba_compat.merging.mergekit.architecture, zamba_compat.merging.mergekit.parents\n"
        "import zamba_compat.merging.mergekit.presence, zamba_compat.merging.mergekit.shared"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
