"""Which fused kernels a model calls, seen while it runs: the same question to stock, to the import and to a Llama."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

PACKAGES = {
    "causal_conv1d_fn": "causal_conv1d",
    "causal_conv1d_update": "causal_conv1d",
    "mamba_chunk_scan_combined": "mamba_ssm",
    "mamba_split_conv1d_scan_combined": "mamba_ssm",
    "selective_state_update": "mamba_ssm",
}
"""The functions that transformers calls, by the package that has them; the hub's kernels have the same names."""


def called(run: Callable[[], Any]) -> list[str]:
    """The kernels' functions that `run` calls, sorted. What transformers itself has under their names is no kernel."""
    found: set[str] = set()

    def watch(frame: FrameType, event: str, _: Any) -> None:
        name = frame.f_code.co_name
        if event == "call" and name in PACKAGES and _package(frame) not in ("transformers", "zamba_compat"):
            found.add(name)

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        run()
    finally:
        sys.setprofile(before)
    return sorted(found)


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def in_words(names: list[str]) -> str:
    """The packages that ran, and which of their functions: "plain" where there is none."""
    packages = sorted({PACKAGES[name] for name in names}, reverse=True)
    return f"{' and '.join(packages)} ({', '.join(names)})" if names else "plain"
