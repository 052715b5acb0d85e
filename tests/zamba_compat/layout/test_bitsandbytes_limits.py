"""Releases of bitsandbytes that cannot do on a CPU what is asked of them."""

from __future__ import annotations

import types

import pytest
import torch

from zamba_compat.errors import UnsupportedReleaseError
from zamba_compat.layout.bitsandbytes_limits import refuse_fp4, refuse_on_cpu


def test_releases_without_a_cpu_are_refused_with_one_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zamba_compat.layout.bitsandbytes_limits._installed", lambda: "0.45.5")
    with pytest.raises(UnsupportedReleaseError, match=r"0\.45\.5 cannot quantize on a CPU.*bitsandbytes>=0\.48"):
        refuse_on_cpu()


@pytest.mark.parametrize(
    ("release", "kind", "refused"), [("0.46.1", "fp4", True), ("0.46.1", "nf4", False), ("0.47.0", "fp4", False)]
)
def test_fp4_needs_0_47_on_a_cpu(release: str, kind: str, refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zamba_compat.layout.bitsandbytes_limits._installed", lambda: release)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = types.SimpleNamespace(load_in_4bit=True, bnb_4bit_quant_type=kind)
    if refused:
        with pytest.raises(UnsupportedReleaseError, match="has no FP4 on a CPU"):
            refuse_fp4(config)
    else:
        refuse_fp4(config)
