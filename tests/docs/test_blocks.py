"""The Python of the README and of docs/ runs as it stands, page by page, on a small model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from docs import pages
from docs.pages import PAGES, TINY
from zamba_compat import configure

# The reason that stands above each block that cannot run here.
NOT_RUN: dict[str, list[str]] = {}
# Pages that are made from files which other tests run.
GENERATED = {"docs/upstream.md": "tests/upstream/test_reports.py runs the files"}


def qlora(names: dict[str, Any]) -> None:
    """The loss falls, and the adapter that is saved holds each shared block's once."""
    from safetensors import safe_open

    losses = names["losses"]
    assert len(losses) == 6 and losses[-1] < losses[0] - 0.05
    with safe_open("adapter/adapter_model.safetensors", "pt") as file:
        shared = {key.partition(".layers.")[2].split(".")[0] for key in file.keys() if "shared_transformer" in key}  # noqa: SIM118
    assert len(shared) == names["model"].config.num_mem_blocks


def shared_once(names: dict[str, Any]) -> None:
    """The model that came out holds a shared block's weight once."""
    layers = [layer for layer in names["model"].model.layers if hasattr(layer, "shared_transformer")]
    weights = {layer.shared_transformer.self_attn.q_proj.weight.data_ptr() for layer in layers}
    assert len(weights) == names["model"].config.num_mem_blocks < len(layers)


def quantized(names: dict[str, Any]) -> None:
    shared_once(names)
    assert Path("quantized", "config.json").exists()


CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {
    "README.md": shared_once,
    "docs/fine-tuning.md": qlora,
    "docs/getting-started.md": shared_once,
    "docs/quantizing.md": quantized,
}
RUN = [page for page in PAGES if pages.name(page) not in GENERATED and pages.blocks(page, "python")]


@pytest.fixture
def settings_back() -> Any:
    yield
    configure(divergent=None)


@pytest.mark.slow
@pytest.mark.usefixtures("settings_back")
@pytest.mark.parametrize("page", RUN, ids=pages.name)
def test_python(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block after those before it, in the same namespace, as a reader goes through a page."""
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"texts": ["def f(x):\n    return x + 1\n" * 4] * 6, "losses": []}
    for block in pages.blocks(page, "python"):
        if block.reason is None:
            code = pages.MODEL.sub(str(TINY / "base"), block.text)
            code = code.replace(".loss\n", ".loss\n    losses.append(loss.item())\n")
            exec(compile(code, pages.name(page), "exec"), names)
    if pages.name(page) in CHECKS:
        CHECKS[pages.name(page)](names)


def test_what_does_not_run_is_listed() -> None:
    found: dict[str, list[str]] = {}
    for page in PAGES:
        for block in pages.blocks(page, "python"):
            if block.reason is not None:
                found.setdefault(pages.name(page), []).append(block.reason)
    assert found == NOT_RUN
    assert set(CHECKS) <= {pages.name(page) for page in RUN}
